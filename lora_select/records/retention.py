"""Records of retention: what was taken out of an adapter so that the base model's knowledge stays, and the evidence for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from lora_select.records.files import FileRef
from lora_select.records.judgement import MetricComparison

KEPT_MOMENTS = "moments.safetensors"
"""The file of kept second moments: beside an adapter, and in a run's folder."""
IN_BASE = f"retention/{KEPT_MOMENTS}"
"""The same in a base model that such an adapter was merged into; in a folder of its own, because engines load every safetensors file of a model."""
KEPT_TASKS = "tasks.json"
"""Every task's loss over time: in a run's folder."""
TASKS_IN_BASE = f"retention/{KEPT_TASKS}"
"""The same in a base model that their adapters were merged into, beside their moments."""


@dataclass(frozen=True)
class Tolerance:
    """The largest rise of the task's loss: a share of it, or nats per token."""

    share: float | None
    nats: float | None


@dataclass(frozen=True)
class PathPoint:
    """One strength (lambda) on the selection rows: loss and its paired rise in nats per label token, the rise that was allowed."""

    strength: float
    loss: float
    rise: float
    standard_error: float
    limit: float
    within: bool


@dataclass(frozen=True)
class UnitLosses:
    """Summed losses in nats of the units of one reference set that the decision reads: label tokens of each, then one number for each arm."""

    labels: tuple[int, ...]
    base: tuple[float, ...]
    arms: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class RetentionEvidence:
    """All that the decision reads. Arms are `raw`, `scale` and `filter`; a path is empty where nothing was searched. `references` are the sets that gave.

    `kappa` = sqrt(<mu> <1/mu>) over the generalised eigenvalues of task against reference inputs: at 1 filtering is scaling.
    """

    tolerance: Tolerance
    raw_loss: float
    selection_rows: int
    kappa: float
    scale_path: tuple[PathPoint, ...]
    filter_path: tuple[PathPoint, ...]
    written_rise: Mapping[str, float]
    """By arm, rise on the selection rows of what can be written, where that is not exactly what was searched (a truncated update)."""
    refused: Mapping[str, str]
    """By arm, why it cannot be written."""
    references: Mapping[str, UnitLosses]
    shortened: float = 0.0
    """The scaling strength with which the update was made shorter before it was filtered; 0 where it was filtered as trained."""
    earlier: Mapping[str, float] | None = None
    """By arm, tr(D Ze D^T) summed over layers as a share of that of `raw`, Ze of the earlier tasks' inputs; None where no moments of such were given."""


@dataclass(frozen=True)
class RetentionDecision:
    """`none`, `scale` or `filter`, the strength (0 for none), and why; recomputable from the evidence alone."""

    choice: str
    strength: float
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceJudgement:
    """One set of reference text that judged. `rise` is adapted minus base in nats per label token: of `raw`, of what is served, of rivals.

    `kl` is the mean divergence KL(base || adapted) in nats per label token. `gave` says whether other text of the set gave second moments.
    """

    name: str
    kind: str
    gave: bool
    digest: str
    base_loss: float
    rise: Mapping[str, MetricComparison]
    kl: Mapping[str, float]
    exact: Mapping[str, MetricComparison] = field(default_factory=dict)
    """By arm, the share of generated answers that are exact, against the base's: of the user's own chats whose answers have one right form."""


@dataclass(frozen=True)
class ReferenceSource:
    """One set of reference text as it was read: tokens that give second moments, pieces that judge, digest of all its tokens."""

    name: str
    kind: str
    give_tokens: int
    judging_units: int
    digest: str
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReferenceText:
    """The sets that a run names, read before its training: each is enough, and none holds rows of the task.

    `later` are the sets that the base model samples itself, which are made after the training.
    """

    sets: tuple[ReferenceSource, ...]
    later: tuple[str, ...]


@dataclass(frozen=True)
class TaskOverTime:
    """One task of a sequence: its loss in nats per label token on rows kept out of every training, before the first training and after each.

    None where it was not measured: before its own training came, or where its rows were not there. `rows_sha256` names the file of these rows.
    `as_trained` is the loss after the last training, before retention.
    """

    name: str
    rows_sha256: str
    rows: int
    losses: tuple[float | None, ...]
    as_trained: float | None

    @property
    def lost(self) -> float | None:
        """Share of the gain of its own training that is lost after the last one; None where there was no gain, or no later training."""
        own = next(index for index, loss in enumerate(self.losses) if loss is not None)
        before, *after = self.losses[own:]
        if before is None or len(after) < 2 or after[0] is None or after[-1] is None or before <= after[0]:
            return None
        return (after[-1] - after[0]) / (before - after[0])


@dataclass(frozen=True)
class TasksOverTime:
    """Every task that a model was trained on, one after the other, each merged before the next: `trainings` in order, this run's last."""

    trainings: tuple[str, ...]
    tasks: tuple[TaskOverTime, ...]


@dataclass(frozen=True)
class LayerRetention:
    """One layer: its kappa, and the share of the update's energy that was kept on task inputs and on reference inputs."""

    name: str
    tokens: int
    kappa: float
    task_kept: float
    reference_kept: float


@dataclass(frozen=True)
class Retention:
    """An adapter before and after. `directory` is a standard PEFT folder: what should be served.

    `task` holds the loss of `raw` and of what is served on evaluation rows (rows that chose nothing), against the adapter as it was trained; empty
    where there were none.
    `form` says how the adapter was read (`lora`, `low rank`, `dense`), `method` how it was written (`as trained`, `lora`, `exact`,
    `truncated`), `error` what a truncation lost of the update's norm.
    """

    adapter_digest: str
    base_digest: str
    directory: str
    files: tuple[FileRef, ...]
    digest: str
    evidence: RetentionEvidence
    decision: RetentionDecision
    task: Mapping[str, MetricComparison]
    references: tuple[ReferenceJudgement, ...]
    layers: tuple[LayerRetention, ...]
    left_alone: Mapping[str, str]
    form: str
    method: str
    rank: int | None
    error: float
    ridge: float
    prior: float
    task_tokens: int
    reference_tokens: int
    moments_file: FileRef | None
    seconds: float
    processor_seconds: float
    notes: tuple[str, ...]
    logits_file: FileRef | None = None
    """What the adapter that should be served answers on the rows of the reload check; None where no training asked for it."""
    forward_tokens: Mapping[str, int] = field(default_factory=dict)
    """Tokens that went forward through the model, by what for: `moments`, `search`, `decide`, `judge`. Padding does not count."""
