"""Records of what the user brought: dataset, base model, profile."""

from dataclasses import dataclass

from lora_select.records.files import FileRef


@dataclass(frozen=True)
class SourceFile:
    """One file that was read: its name (not its folder), SHA-256, data rows seen and data rows accepted, and their formats."""

    name: str
    sha256: str
    rows: int
    accepted: int
    format: str = ""


@dataclass(frozen=True)
class LeftOutFile:
    """A file below the source that was not read, and why: hidden, a licence, another split, no rows."""

    name: str
    reason: str


@dataclass(frozen=True)
class RejectedRows:
    """Rows left out for one reason. `examples` holds up to five `file:line` places; all are in `Dataset.rejected_file`."""

    reason: str
    count: int
    examples: tuple[str, ...]


@dataclass(frozen=True)
class Dataset:
    """Canonical rows on disk (Parquet, one row of messages each) and where they came from.

    `digest` is the root of a Merkle tree over the digests of the rows of each split (its leaves are in `identity_file`): it depends on
    the content of the rows, not on file names, file order or row order. `places_file` says where each row came from.
    `split_seed` is the dataset's own and no run's, so that rows that are held out once stay held out.
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
    """By what the split was made, or the name of the user's own evaluation source."""
    left_out: tuple[LeftOutFile, ...] = ()
    places_file: FileRef | None = None
    identity_file: FileRef | None = None
    split_seed: int = 0
    notes: tuple[str, ...] = ()
    """What became of keys that are not used and of turns that were changed, a sentence each with its count."""
    gate_file: FileRef | None = None
    """The record of the data gate, which looked at the rows as they were read."""


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

    `rows_truncated` rows were longer than `max_length` and lost some of `label_tokens_lost` label tokens; `rows_without_labels`
    had no label token left, since their prompt alone is that long, and are not trained on; nor are `rows_unusable`, whose labels
    would be wrong. `tokens` = `prompt_tokens` + `label_tokens`, after truncation. `texts` is how many texts are trained on: more
    than rows where a chat template changes earlier turns and each turn is learnt in a text of its own, None where it was not counted.
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
    rows_unusable: int = 0
    texts: int | None = None

    @property
    def trained(self) -> int:
        """How many texts are trained on."""
        left = self.rows - self.rows_without_labels - self.rows_unusable
        return left if self.texts is None else self.texts


@dataclass(frozen=True)
class DatasetProfile:
    """What the training data is, measured before anything is trained.

    `base_loss` is the base model's mean negative log-likelihood in nats per label token on `base_loss_rows` eval rows;
    `base_loss_se` its standard error (rows as the unit). `bits_per_byte` is the zlib-compressed size of the label texts in
    bits per byte of text. `information_bits` = T L0 / ln 2, T train label tokens: an upper bound on what the labels can
    teach. `unusable` rows of either split are left out, by reason, with places; `notes` say what is written
    otherwise than the rows have it, with counts.
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
    unusable: tuple[RejectedRows, ...] = ()
    notes: tuple[str, ...] = ()
    base_losses: tuple[float, ...] = ()
    """Summed loss in nats of each of the `base_loss_rows` rows, in float32 on `base_device`: the evaluation does not measure them again."""
    base_device: str = ""
