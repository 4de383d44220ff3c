"""Records of the training: plan, steps, adapter, proof."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_select.records.choice import AdapterSpec, Evidence
from lora_select.records.evidence import Energy
from lora_select.records.files import FileRef


@dataclass(frozen=True)
class Range:
    """A low, expected and high estimate in one unit, named by the field that holds it."""

    low: float
    expected: float
    high: float


@dataclass(frozen=True)
class Replay:
    """Reference text that is trained on beside the task's rows, so that the base model keeps it. Every token of it but the first is learnt."""

    tokens: int
    rows_of: Mapping[str, int]
    """Rows by the name of the reference set."""
    distinct: int
    """Different rows among them; the others are the same text again."""
    tokens_file: FileRef

    @property
    def rows(self) -> int:
        """Of all sets."""
        return sum(self.rows_of.values())


@dataclass(frozen=True)
class TrainingPlan:
    """How the adapter will be trained. `effective_batch_size` = ranks x micro-batch x accumulation, in rows."""

    device: str
    num_processes: int
    zero_stage: int
    precision: str
    micro_batch_size: int
    gradient_accumulation_steps: int
    effective_batch_size: int
    epochs: float
    total_steps: int
    warmup_steps: int
    learning_rate: float
    lr_schedule: str
    weight_decay: float
    max_grad_norm: float
    checkpoint_every: int
    keep_checkpoints: int
    gradient_checkpointing: bool
    seed: int
    threads_per_process: int
    memory_gib: Range
    """Peak resident memory of one rank, GiB."""
    minutes: Range
    """Wall-clock time of the training stage, minutes."""
    disk_gib: float
    reasons: tuple[str, ...]
    nodes: int = 1
    """Machines that the ranks are spread over evenly."""
    packing: bool = False
    """Whether the rows of a micro-batch are laid end to end instead of padded to the longest."""
    validation_rows: int = 0
    """Training rows that are kept from training; they choose the checkpoint."""
    validation_every: int = 0
    """Steps from one look at them to the next."""
    patience: int = 0
    """Looks in a row that may be worse than the best one before training stops; 0: it never stops early."""
    replay: Replay | None = None
    """Reference text among the rows of the training; its file lies beside the plan."""


@dataclass(frozen=True)
class StepMetrics:
    """One optimizer step as rank 0 wrote it. `loss` is nats per label token over the effective batch."""

    step: int
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    memory_gib: float
    timestamp_ms: int
    validation_loss: float | None = None
    """Nats per label token of the rows kept from training, after the steps at which they were looked at."""


@dataclass(frozen=True)
class Validation:
    """What the rows kept from training said. `losses` are nats per label token after each of `steps`; the adapter is that of `chosen_step`.

    Step 0 is the base model, which no adapter is made of. `standard_error` is that of the chosen loss over rows. `stopped_early` says whether training ended before its planned last step.
    """

    rows: int
    steps: tuple[int, ...]
    losses: tuple[float, ...]
    standard_error: float
    chosen_step: int
    stopped_early: bool

    @property
    def base_was_best(self) -> bool:
        """Whether no look was better than the one before the first step."""
        return 0 in self.steps and self.losses[self.steps.index(0)] <= min(
            loss for step, loss in zip(self.steps, self.losses, strict=True) if step
        )


@dataclass(frozen=True)
class Remedy:
    """What was done about a failure in training, and why.

    `failure` is its class, `step` where it happened, `message` what was seen; `before` and `after` hold the fields of the
    plan that the remedy changed (none: the run was only restarted). The effective batch and the seed never change.
    """

    failure: str
    step: int
    message: str
    action: str
    before: Mapping[str, Any]
    after: Mapping[str, Any]


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: `directory` (relative) is a standard PEFT folder that plain PEFT loads on the pristine base.

    `reference_logits` holds input ids and the trained model's logits, for the check in a new process. `resumed_from` lists the
    steps at which a killed run was taken up again.
    """

    spec: AdapterSpec
    directory: str
    files: tuple[FileRef, ...]
    digest: str
    reference_logits: FileRef
    metrics_file: FileRef
    steps: int
    final_loss: float
    tokens: int
    label_tokens: int
    seconds: float
    peak_memory_gib: float
    num_processes: int
    zero_stage: int
    resumed_from: tuple[int, ...]
    export: str
    """How the folder was made portable: `as trained` or `2r conversion`."""
    remedies: tuple[Remedy, ...] = ()
    """What was done about failures on the way, in order."""
    validation: Validation | None = None
    """None where no rows were kept from training."""
    energy: Energy | None = None
    """What the machine's counters say that the training used; None where it has none, or where several nodes trained."""
    forecast: Evidence | None = None
    """What the first quarter of the steps said that the training takes off the held-out loss; None where nothing like it was seen before."""


@dataclass(frozen=True)
class ReloadCheck:
    """What a new process saw when it loaded the adapter on the pristine base.

    `max_logit_difference` is the largest absolute difference to the trained model's logits on those rows;
    `function_change` the largest absolute difference to the base model's logits (must not be 0).
    """

    adapter_digest: str
    tensors: int
    finite: bool
    nonzero_b: bool
    max_logit_difference: float
    tolerance: float
    function_change: float
    passed: bool
    faults: tuple[str, ...]
