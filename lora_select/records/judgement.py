"""Records of the judgement: comparisons, evaluation, promotion, report."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_select.records.files import FileRef


@dataclass(frozen=True)
class MetricComparison:
    """A metric on the same rows before and after: `difference` = adapted - base, `interval` its 95 % paired bootstrap.

    `better` says which direction is an improvement (`lower` or `higher`); `significant` whether the interval excludes 0.
    `standard_error` is that of `difference`, from the paired differences; None in records older than it.
    """

    base: float
    adapted: float
    difference: float
    interval: tuple[float, float]
    rows: int
    unit: str
    better: str
    significant: bool
    standard_error: float | None = None


@dataclass(frozen=True)
class Sample:
    """One held-out row as a person reads it."""

    prompt: str
    expected: str
    base: str
    adapted: str


@dataclass(frozen=True)
class StoredGain:
    """The adapter merged into its base, the sum stored in fewer bits (`form`), on the same held-out rows.

    `base_loss` is the base's loss when it is stored so, nats per label token. In `metrics`, `base` is the adapter beside its base and
    `adapted` the merged model stored so. `left` is the share of the adapter's gain in loss over the base as it was measured; `interval` its
    95 % paired bootstrap. Both are None where the gain itself cannot be told from noise.
    """

    form: str
    base_loss: float
    metrics: Mapping[str, MetricComparison]
    left: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class Evaluation:
    """Base against adapted on held-out rows; `against` holds the same comparison to other adapters (`plain_lora`, `champion`).

    In `against[x]`, `base` is x and `adapted` the new adapter. `champion_version` is the version that `champion` was.
    `checkable` names the metrics that have one right answer a row, so that 0 of them right means that nothing was learnt.
    `stored` holds the merged model in the forms that `evaluation.quantized` names.
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
    checkable: tuple[str, ...] = ()
    stored: tuple[StoredGain, ...] = ()


@dataclass(frozen=True)
class FewShot:
    """The untrained model on the held-out rows, alone and with `examples` training rows before each; measured before anything is trained.

    In `metrics`, `base` is the model alone and `adapted` the model with examples. `enough` says that every answer is then exactly right, so
    that nothing is left to train for on these rows. `examples` is 0 and nothing was measured where none could be laid there: `notes` say
    why. `files` hold what was measured row by row, by model (`base`, `few_shot`): the evaluation takes it from there.
    """

    dataset_digest: str
    model_digest: str
    examples: int
    metrics: Mapping[str, MetricComparison]
    enough: bool
    notes: tuple[str, ...]
    files: Mapping[str, FileRef]


@dataclass(frozen=True)
class Criterion:
    """One thing that the gate asked of one metric: the value, what it is held against, and how sure that is.

    `test` is one of `superiority`, `non-inferiority`, `no proven harm`, `floor`, `limit`, `rows`, `comparison`. `value` is a
    difference (adapted - rival, in the metric's unit) where there is a `rival`, else the adapter's own value; `margin` is the bound
    it is held against, in the same unit. `outcome` is `passed`, `failed` or `undecided`: neither shown to pass nor to fail on
    these rows. `rows_needed` is about how many rows would tell with 80 % power if the measured effect is the true one.
    """

    test: str
    metric: str
    rival: str | None
    value: float | None
    margin: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    rows: int
    rows_needed: int | None
    outcome: str
    reason: str


@dataclass(frozen=True)
class SeedNoise:
    """How far trainings differ that differ in their seed alone, measured on one set of held-out rows.

    `losses` are nats per label token, one a seed. `row_sd` is the standard deviation of one row's paired difference between two seeds,
    root mean square over their pairs, in the same unit. `ratio` is the standard deviation of the difference of two seeds over `row_sd`;
    `interval` is its 95 % interval. `asked` is what the gate asks for by it: more than `ratio`, where few seeds were trained.
    """

    run: str
    base_digest: str
    dataset_digest: str
    seeds: tuple[int, ...]
    adapters: tuple[str, ...]
    """Digests, one a seed."""
    losses: tuple[float, ...]
    rows: int
    row_sd: float
    ratio: float
    interval: tuple[float, float]
    asked: float
    rows_file: FileRef
    """Label tokens and summed losses of each row, nats, one list a seed."""


@dataclass(frozen=True)
class Verdict:
    """The gate's answer: `promote`, `refuse` or `undecided`, the alias that follows, and every criterion.

    `rows_needed` is the most that any undecided criterion needs; None where there is none, or where rows would not tell one of them.
    `seed_noise` is the measurement that `promotion.seed_noise` names; None where it is a number.
    """

    answer: str
    alias: str
    reasons: tuple[str, ...]
    criteria: tuple[Criterion, ...]
    rows_needed: int | None
    policy_digest: str
    seed_noise: SeedNoise | None = None


@dataclass(frozen=True)
class Promotion:
    """What the registry was told and why; `verdict` is what the gate found.

    `alias` is `challenger` or `champion`, or what keeps the adapter from being either: `awaiting approval`, `rejected`, `deferred`.
    `version` is "" where none was registered yet.
    """

    model_name: str
    version: str
    alias: str
    previous_champion: str | None
    reasons: tuple[str, ...]
    verdict: Verdict | None = None


@dataclass(frozen=True)
class Report:
    """The page a person reads."""

    file: FileRef
    figures: tuple[FileRef, ...] = field(default=())
