"""Records of the judgement: comparisons, evaluation, promotion, report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_select.records.files import FileRef


@dataclass(frozen=True)
class MetricComparison:
    """A metric on the same rows before and after: `difference` = adapted - base, `interval` its 95 % paired bootstrap.

    `better` says which direction is an improvement (`lower` or `higher`); `significant` whether the interval excludes 0.
    """

    base: float
    adapted: float
    difference: float
    interval: tuple[float, float]
    rows: int
    unit: str
    better: str
    significant: bool


@dataclass(frozen=True)
class Sample:
    """One held-out row as a person reads it."""

    prompt: str
    expected: str
    base: str
    adapted: str


@dataclass(frozen=True)
class Evaluation:
    """Base against adapted on held-out rows; `against` holds the same comparison to other adapters (`plain_lora`, `champion`).

    In `against[x]`, `base` is x and `adapted` the new adapter. `champion_version` is the version that `champion` was.
    """

    adapter_digest: str
    dataset_digest: str
    metrics: Mapping[str, MetricComparison]
    against: Mapping[str, Mapping[str, MetricComparison]]
    forgetting: MetricComparison
    samples: tuple[Sample, ...]
    rows_file: FileRef
    notes: tuple[str, ...]
    champion_version: str | None = None


@dataclass(frozen=True)
class Promotion:
    """What the registry was told and why. `alias` is `challenger` or `champion`."""

    model_name: str
    version: str
    alias: str
    previous_champion: str | None
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """The page a person reads."""

    file: FileRef
    figures: tuple[FileRef, ...] = field(default=())
