"""What a record adds to a run, as plain data, and MLflow's limits on it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_select.tracking.logged_models import ModelEntry

MAX_PARAM = 6000
MAX_TAG = 8000
MAX_METRICS = 1000
"""MLflow's limits per value (characters) and per batch."""
DATASET_DIGEST = 36
KEPT = 200
"""Characters of a value that is too long; the whole value is an artifact."""


@dataclass(frozen=True)
class DatasetEntry:
    """A dataset input. `digest` is a full SHA-256: MLflow takes 36 characters of it, the tag holds the rest.

    `columns` maps a column to whether every row has it; `profile` holds counts.
    """

    name: str
    digest: str
    source: str
    context: str
    rows: int
    columns: Mapping[str, bool] = field(default_factory=dict)
    profile: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Entries:
    """Everything one record adds to a run.

    `texts` maps an artifact path to its text; `files` a local absolute path (file or folder) to an artifact folder.
    `timestamp_ms` is fixed when the entries are made, so that sending them twice changes nothing. `model` is an adapter that the run
    made, `checkpoints` are those that its training kept, `judged` is the digest of the adapter that its metrics are of.
    """

    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    datasets: tuple[DatasetEntry, ...] = ()
    timestamp_ms: int = 0
    model: ModelEntry | None = None
    checkpoints: tuple[ModelEntry, ...] = ()
    judged: str | None = None
