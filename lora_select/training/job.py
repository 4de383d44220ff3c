"""What one training run is told: a JSON file that the supervisor and every rank read, and where its files are."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from lora_select.records import AdapterSpec, Remedy, TrainingPlan, write_text

JOB = "job.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
LOG = "train.log"
LAUNCH = "launch.json"
REFERENCE_LOGITS = "reference_logits.safetensors"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
REMEDIES = "remedies.json"
VALIDATION = "validation.jsonl"
BEST = "best"
_REMEDIES: TypeAdapter[tuple[Remedy, ...]] = TypeAdapter(tuple[Remedy, ...])


@dataclass(frozen=True)
class TrainingJob:
    """A training run.

    `train_tokens` and `check_tokens` are token Parquet files, and so is `replay_tokens`: reference text that is trained on beside the task's rows; `initial_factors` is the safetensors file of a start that
    is not the default (None otherwise); `quantized_base` is `nf4`, `int8` or None. When no rank moves for `patience_seconds` the attempt is ended as stuck. `attempt`
    counts the starts of the ranks; the agents of other nodes join each new one at `rendezvous` (host:port of the first node).
    """

    spec: AdapterSpec
    plan: TrainingPlan
    base_path: str
    base_source: str
    train_tokens: str
    check_tokens: str
    initial_factors: str | None = None
    quantized_base: str | None = None
    patience_seconds: float = 1800.0
    attempt: int = 0
    rendezvous: str | None = None
    replay_tokens: str | None = None


def write_job(folder: Path, job: TrainingJob) -> Path:
    """Write the job into its folder."""
    write_text(folder / JOB, json.dumps(dataclasses.asdict(job), indent=2, sort_keys=True) + "\n")
    return folder / JOB


def read_job(path: Path) -> TrainingJob:
    """Read what :func:`write_job` wrote, also under a field's earlier name."""
    fields = json.loads(path.read_text(encoding="utf-8"))
    if "probe_tokens" in fields:
        fields["check_tokens"] = fields.pop("probe_tokens")
    return TypeAdapter(TrainingJob).validate_json(json.dumps(fields))


def read_remedies(folder: Path) -> tuple[Remedy, ...]:
    """Every remedy of this training folder so far, in order: an audited list that outlives every process."""
    path = folder / REMEDIES
    return _REMEDIES.validate_json(path.read_bytes()) if path.is_file() else ()


def write_remedies(folder: Path, history: Sequence[Remedy]) -> None:
    """Write the list, before the remedy is used."""
    plain: Any = _REMEDIES.dump_python(tuple(history), mode="json")
    write_text(folder / REMEDIES, json.dumps(plain, indent=2, sort_keys=True) + "\n")


def node_file(name: str, node: int) -> str:
    """The name that a node's own copy of a file has in the shared folder; the first node has the plain name.

    >>> node_file("train.log", 0), node_file("train.log", 2)
    ('train.log', 'train-node2.log')
    """
    stem, dot, ending = name.partition(".")
    return f"{stem}-node{node}{dot}{ending}" if node else name


def last_attempt(folder: Path) -> int:
    """The number of the last start of the ranks in this folder; 0 when there was none."""
    try:
        return int(json.loads((folder / JOB).read_text(encoding="utf-8"))["attempt"])
    except (OSError, ValueError, KeyError):
        return 0
