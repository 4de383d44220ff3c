"""The records that travel down the line: small, frozen, valid JSON.

Every stage of the pipeline returns exactly one of these. Tensors and tables never travel inside a record: they are files
in the stage's folder, named by a :class:`FileRef` (path relative to that folder, SHA-256). A record is therefore enough to
audit a stage, and `select` can be replayed from records alone.
"""

import dataclasses
import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

RECORD_VERSION = 1


@dataclass(frozen=True)
class FileRef:
    """A file in the stage's folder: relative path, SHA-256 (hex) and size in bytes."""

    path: str
    sha256: str
    size: int


# --- intake ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SourceFile:
    """One file that was read: its name (not its folder), SHA-256, data rows seen and data rows accepted."""

    name: str
    sha256: str
    rows: int
    accepted: int


@dataclass(frozen=True)
class RejectedRows:
    """Rows left out for one reason. `examples` holds up to five `file:line` places; all are in `Dataset.rejected_file`."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Canonical rows on disk (Parquet, one row of messages each) and where they came from.

    `digest` is the SHA-256 over the sorted row digests: it depends on the content of the rows, not on file names, file
    order or row order.
    """

    name: str
    source: str
    format: str
    digest: str
    train_rows: int
    eval_rows: int
    train_file: FileRef
    eval_file: FileRef
    rejected_file: FileRef
    sources: tuple[SourceFile, ...]
    rejected: tuple[RejectedRows, ...]
    eval_source: str
    """`split by hash` or the name of the user's own evaluation source."""


@dataclass(frozen=True)
class BaseModel:
    """A loaded base model: where it came from and what identifies it.

    `path` is the local folder in Hugging Face layout (an absolute path: not part of any digest). `digest` is the SHA-256
    over the safetensors files and the tokenizer and config files. `num_parameters` counts tied weights once.
    """

    source: str
    revision: str | None
    path: str
    digest: str
    architecture: str
    num_parameters: int
    num_hidden_layers: int
    hidden_size: int
    vocab_size: int
    has_chat_template: bool
    max_position_embeddings: int | None


# --- profile ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Quantiles:
    """Minimum, quantiles and maximum of a count per row, in tokens."""

    minimum: int
    p50: int
    p90: int
    p99: int
    maximum: int
    mean: float


@dataclass(frozen=True)
class SplitProfile:
    """Token counts of one split (`train` or `eval`), after the chat template and before batching.

    `rows_truncated` rows were longer than `max_length` and lost `label_tokens_lost` label tokens; `rows_without_labels`
    had no label token left and are not trained on. `tokens` = `prompt_tokens` + `label_tokens`, after truncation.
    """

    rows: int
    tokens: int
    prompt_tokens: int
    label_tokens: int
    length: Quantiles
    label_length: Quantiles
    duplicate_rows: int
    rows_truncated: int
    label_tokens_lost: int
    rows_without_labels: int


@dataclass(frozen=True)
class DatasetProfile:
    """What the training data is, measured before anything is trained.

    `base_loss` is the base model's mean negative log-likelihood in nats per label token on `base_loss_rows` eval rows;
    `base_loss_se` its standard error (rows as the unit). `bits_per_byte` is the zlib-compressed size of the label texts in
    bits per byte of text. `information_bits` = T L0 / ln 2, T train label tokens: an upper bound on what the labels can
    teach (selection.md 5.1).
    """

    dataset_digest: str
    model_digest: str
    max_length: int
    train: SplitProfile
    eval: SplitProfile
    eval_rows_in_train: int
    base_loss: float
    base_loss_se: float
    base_loss_rows: int
    bits_per_byte: float
    information_bits: float
    warnings: tuple[str, ...]
    train_tokens_file: FileRef
    eval_tokens_file: FileRef


# --- analyze ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LayerSpectra:
    """Statistics of one linear layer, W of shape (m, n) = (out, in); see docs/theory.md for each formula.

    Energies are squared Frobenius norms of the label-masked mean-loss gradient G (units: nats^2 per weight-unit^2).
    `signal_energy` is a U-statistic, unbiased and so possibly negative; `signal_energy_se` is its jackknife standard
    error. `noise_energy` is the energy of one microbatch's deviation from the mean. `heldout_values` are held-out singular
    values of G with `heldout_se`; `signal_rank` is the leading run above three standard errors.
    """

    name: str
    kind: str
    out_features: int
    in_features: int
    tokens: int
    signal_energy: float
    signal_energy_se: float
    noise_energy: float
    heldout_values: tuple[float, ...]
    heldout_se: tuple[float, ...]
    signal_rank: int
    weight_energy: float
    weight_values: tuple[float, ...]
    weight_stable_rank: float
    activation_energy: float
    """Mean squared norm of the layer input, E||x||^2, per token."""
    activation_values: tuple[float, ...]
    """Leading eigenvalues of the centred second moment of the inputs, per token."""
    output_energy: float
    """Mean squared norm of the layer output, E||W x||^2, per token."""
    tangent_shares: Mapping[str, float]
    """Candidate tangent share at init per variant key (`<variant>@<r>`), of the *signal* energy: unbiased over folds."""
    tangent_shares_se: Mapping[str, float]
    displacements: Mapping[str, float]
    """rms(dW x)/rms(W x) after one sign step of unit rate per variant key, no unit."""


@dataclass(frozen=True)
class Spectra:
    """One streamed pass over `microbatches` training microbatches with frozen base weights.

    `tensors` holds per-layer singular systems (safetensors) that initialisations are built from.
    """

    dataset_digest: str
    model_digest: str
    microbatches: int
    folds: int
    sketch_size: int
    seed: int
    tokens: int
    label_tokens: int
    mean_loss: float
    layers: tuple[LayerSpectra, ...]
    skipped_layers: Mapping[str, str]
    tensors: FileRef
    seconds: float


# --- select ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdapterSpec:
    """Everything that names an adapter: what the worker builds and what MLflow records.

    `scale` = alpha / r (alpha / sqrt(r) for rsLoRA). `init` names the start (`default`, `pissa`, `eva`).
    """

    variant: str
    targets: str
    target_modules: tuple[str, ...]
    r: int
    lora_alpha: int
    scale: float
    init: str
    learning_rate: float
    peft_arguments: Mapping[str, Any]
    num_parameters: int


@dataclass(frozen=True)
class Evidence:
    """One measured number that a decision leans on: name, value, standard error (None: exact), unit, source stage."""

    name: str
    value: float
    standard_error: float | None
    unit: str
    source: str


@dataclass(frozen=True)
class CandidateScore:
    """A candidate, what was measured for it, and why it was not chosen.

    `rejected` is empty for the choice alone; sentences that begin with `tied:` mark the tie set. `score` is the share of the
    signal energy in the tangent space at the start, in [0, 1], with its standard error.
    """

    key: str
    spec: AdapterSpec
    evidence: tuple[Evidence, ...]
    score: float
    score_se: float
    rejected: tuple[str, ...]


@dataclass(frozen=True)
class SelectionInputs:
    """Everything `select` reads besides profile and spectra: constraints, limits and the planned number of steps."""

    serve: str | None
    must_merge: bool
    quantized_base: str | None
    allow_modified_base: bool
    zero_stage: int
    r: int | None
    variant: str | None
    targets: str | None
    learning_rate: float | None
    planned_steps: int
    max_parameters: int | None
    claims: Mapping[str, bool]


@dataclass(frozen=True)
class Decision:
    """The choice, its evidence, every alternative and the rule that chose; recomputable from `inputs` and records.

    `abstained` is True when nothing cleared the noise and the default (all-linear LoRA at 3e-4) was taken.
    """

    rule: str
    rule_version: str
    profile_digest: str
    spectra_digest: str
    inputs: SelectionInputs
    choice: AdapterSpec
    choice_key: str
    abstained: bool
    reasons: tuple[str, ...]
    candidates: tuple[CandidateScore, ...]


# --- plan and train --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Range:
    """A low, expected and high estimate in one unit, named by the field that holds it."""

    low: float
    expected: float
    high: float


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


@dataclass(frozen=True)
class Adapter:
    """A trained adapter: `directory` (relative) is a standard PEFT folder that plain PEFT loads on the pristine base.

    `probe_file` holds input ids and the trained model's logits, for the proof in a new process. `resumed_from` lists the
    steps at which a killed run was taken up again.
    """

    spec: AdapterSpec
    directory: str
    files: tuple[FileRef, ...]
    digest: str
    probe_file: FileRef
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


@dataclass(frozen=True)
class Proof:
    """What a new process saw when it loaded the adapter on the pristine base.

    `max_logit_difference` is the largest absolute difference to the trained model's logits on the probe batch;
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


# --- evaluate, promote, report ---------------------------------------------------------------------------------------


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


# --- JSON ------------------------------------------------------------------------------------------------------------

R = TypeVar("R")


def to_json(record: Any) -> str:
    """The canonical JSON text of a record: sorted keys, two-space indent, no NaN or infinity, final newline.

    Raises:
        ValueError: a number is NaN or infinite; a record must hold only what was measured.
    """
    return json.dumps(dataclasses.asdict(record), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(kind: type[R], text: str, *, place: str = "record") -> R:
    """Read a record of type `kind`; `place` names the file in errors.

    Raises:
        ValueError: not JSON, a missing or unknown field, or a value of the wrong type; the message names the field.
    """
    try:
        return TypeAdapter(kind).validate_json(text, extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ValueError(
            f"{place} is not a {kind.__name__} record: {where}: {first['msg']}; it was edited or written by another "
            "version, delete the stage's folder to make it again"
        ) from error


def digest(record: Any) -> str:
    """SHA-256 (hex) of the record's canonical JSON."""
    return hashlib.sha256(to_json(record).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` is either the old file or the whole new one, also after a kill or a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write(path: Path, record: Any) -> None:
    """Write a record's canonical JSON atomically."""
    write_text(path, to_json(record))


def read(kind: type[R], path: Path) -> R:
    """Read a record written by :func:`write`."""
    return from_json(kind, path.read_text(encoding="utf-8"), place=str(path))


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_ref(path: Path, folder: Path) -> FileRef:
    """Name `path` (inside `folder`) by relative path, digest and size."""
    return FileRef(path.relative_to(folder).as_posix(), sha256_file(path), path.stat().st_size)


def finite(value: float, name: str) -> float:
    """Return `value`, or raise naming it: a record never holds NaN or infinity.

    Raises:
        RuntimeError: `value` is not finite.
    """
    if not math.isfinite(value):
        raise RuntimeError(f"{name} is {value}: the measurement diverged")
    return value
