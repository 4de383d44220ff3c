"""The sections of a config and their fields: `RunConfig`, with the defaults that the project recommends."""

import re
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, field_serializer, model_validator

from lora_select.address import default_uri, masked
from lora_select.config.spellings import gib, share, simple_form, switched
from lora_select.records import Constraints


class Section(BaseModel):
    """A frozen part of the config in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseModelConfig(Section):
    """Which model is adapted. Remote code is never run and only safetensors or GGUF weights are read.

    `quantize` holds its linear layers in nf4 (QLoRA) or int8 while the adapter trains and is judged; the spectral pass and the
    profile measure the weights as they are.
    """

    source: str
    revision: str | None = None
    quantize: Literal["nf4", "int8"] | None = None


class DatasetConfig(Section):
    """Which rows are learnt. `eval_source: null` takes files that are named as held out, else splits the rows by a hash of their prompts.

    `split_seed` changes the split; it is the dataset's own, so that another seed of the run judges on the same rows.
    `columns` maps what a format calls a column to what the file calls it: `{prompt: q, completion: a}`; `ignore_columns` are left
    out on purpose and not reported. `reasoning` is learnt or dropped; of a row with several answers `learn` takes all, or the last.
    `max_unusable` is the share of rows that may be left out because the model's chat template or tokenizer cannot hold them.
    `registered` is the SHA-256 that an event names: the run starts only if the ledger of `runs_dir` holds that registration and the
    bytes are those. `allowed_folders`, where given, are the only ones that data may lie in.
    """

    source: str
    format: Literal["auto", "messages", "alpaca", "sharegpt", "prompt-completion", "text"] = "auto"
    revision: str | None = None
    split: str | None = None
    eval_source: str | None = None
    eval_fraction: float = Field(default=0.1, gt=0, lt=1)
    split_seed: int = Field(default=0, ge=0)
    registered: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    allowed_folders: tuple[str, ...] = ()
    max_train_rows: int | None = Field(default=None, ge=1)
    max_eval_rows: int | None = Field(default=256, ge=2)
    max_length: int = Field(default=1024, ge=8)
    columns: dict[str, str] = Field(default_factory=dict)
    ignore_columns: tuple[str, ...] = ()
    reasoning: Literal["keep", "drop"] = "keep"
    learn: Literal["all", "last"] = "all"
    max_unusable: float = Field(default=0.05, ge=0, le=1)


class GateConfig(Section):
    """What the data gate does: `actions` maps a rule to refuse, warn, fix or off, in place of its default (docs/data.md lists them).

    `apply_fixes: false` keeps every row as it is and only reports what would be mended. `benchmarks` are files, folders or
    `package:path` whose items must not be among the training rows.
    """

    actions: dict[str, Annotated[Literal["refuse", "warn", "fix", "off"], BeforeValidator(switched)]] = Field(
        default_factory=dict
    )
    apply_fixes: bool = True
    benchmarks: list[str] = Field(default_factory=list)


class AnalysisConfig(Section):
    """The spectral pass: `microbatches` of `microbatch_size` rows, sketches of `sketch_size` columns.

    `auto` reads as many as `budget` pays for, a share of the planned training's compute, in 4 to 32 microbatches. It reads 32 where a race,
    a claim or a named variant needs more than LoRA's displacement. `structure`: also the structure scores, which decide nothing.
    """

    microbatches: Annotated[int, Field(ge=4)] | Literal["auto"] = "auto"
    budget: Annotated[float, BeforeValidator(share)] = Field(
        default=0.05,
        ge=0,
        validation_alias=AliasChoices("budget", "pass_budget"),  # its name in earlier runs
    )
    microbatch_size: int = Field(default=2, ge=1)
    sketch_size: int = Field(default=32, ge=4)
    structure: bool = False
    base_loss_rows: int = Field(default=64, ge=2)


class SelectionConfig(Section):
    """Constraints on the choice, and overrides: a named variant, targets, r or rate is respected and recorded as such.

    `race_budget` is what probe trainings may cost before the decision, as a share of the training itself (0: none; 3: three as long
    as the training). They try plain LoRA at three rates; 6 pays for a rival of as many, 9 for two, 12 for three.
    `adapt_experts: false` leaves experts that a layer holds in one tensor as they are.
    `when_hopeless` says what follows where nothing is left to train for: `stop` ends before the training, `warn` says so and trains.
    That is shown where `evaluation.few_shot` is set and every held-out question is answered exactly with examples in the prompt.
    """

    serve: Literal["vllm", "sglang", "llama.cpp", "ollama", "mlx", "merged"] | None = None
    must_merge: bool = False
    allow_modified_base: bool = True
    max_parameters: int | None = Field(default=None, ge=1)
    adapt_experts: bool = True
    variant: str | None = None
    targets: Literal["all-linear", "mlp-only"] | None = None
    r: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0)
    race_budget: Annotated[float, BeforeValidator(share)] = Field(default=0.0, ge=0)
    claims: dict[str, bool] = Field(default_factory=dict)
    when_hopeless: Literal["warn", "stop"] = "warn"

    @model_validator(mode="before")
    @classmethod
    def _of_earlier_runs(cls, given: Any) -> Any:
        """What the filter does better is no choice any more."""
        if not isinstance(given, dict) or "prefer_retention" not in given:
            return given
        if given["prefer_retention"] is not False:
            raise ValueError("`prefer_retention` is gone: `retention` keeps more, after the training; leave it out")
        return {name: value for name, value in given.items() if name != "prefer_retention"}


class TrainingConfig(Section):
    """How training runs. `auto` lets the plan decide: one rank a GPU, two on CPU; the ZeRO stage that fits.

    `num_processes` counts the ranks of all `nodes`; see docs/operations.md for how other nodes join. `memory` is that of the device
    that trains, such as `24GiB`: where it is not this machine, or where training may not take all of it (null: what this machine has).
    `packing` lays rows end to end instead of padding them: the loss and the gradients are the same, which every run checks
    on its own model first. `validation` is the share of the training rows (8 to 64 of them) that is kept from training to choose the
    checkpoint; `patience` ends the training after so many looks at them that were worse than the best one, `null` never. Where rows
    have few labels more are kept, up to a quarter. `epochs: auto` plans ten epochs, ends when patience does, and needs rows to
    look at.
    """

    num_processes: int | Literal["auto"] = "auto"
    nodes: int = Field(default=1, ge=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    memory: Annotated[float | None, BeforeValidator(gib)] = None
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    zero_stage: Literal["auto", 0, 1, 2, 3] = "auto"
    batch_size: int = Field(default=16, ge=1)
    micro_batch_size: int | None = Field(default=None, ge=1)
    packing: Literal["auto"] | bool = "auto"
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    epochs: Literal["auto"] | Annotated[float, Field(gt=0)] = 1.0
    max_steps: int | None = Field(default=None, ge=1)
    warmup_fraction: float = Field(default=0.1, ge=0, lt=1)
    lr_schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    checkpoint_every: int = Field(default=20, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    validation: float = Field(default=0.05, ge=0, lt=0.5)
    patience: int | None = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _ends(self) -> "TrainingConfig":
        if self.epochs == "auto" and not (self.validation and self.patience):
            raise ValueError(
                "`epochs: auto` ends where looks at kept rows do: it needs `validation` above 0 and a `patience`, or give a number"
            )
        return self


class EvaluationConfig(Section):
    """What is measured on held-out rows. Generation is the slow part: `exact_match_rows` bounds it.

    `metrics` names more metrics of the answers: `name: module:function`, or a mapping with one of `function`, `regex`,
    `json: true`, `json_schema`, `rouge`, `chrf: true`. `tasks` are tasks of lm-eval whose YAML files are in `task_folder`, at most
    `task_limit` documents each. `few_shot` measures the untrained model with so many training rows in its prompt before anything is trained,
    and holds the adapter against it; `auto` takes up to 8, as fit into the model's positions and `dataset.max_length`; 0 takes none.
    `quantized` merges the adapter into the base and measures base and sum in these forms too: what is left of
    the gain where a merged model is served in fewer bits. `nf4` and `int8` are bitsandbytes', the others GGUF's.
    """

    exact_match_rows: int = Field(default=48, ge=0)
    max_new_tokens: int = Field(default=96, ge=1)
    bootstrap_samples: int = Field(default=2000, ge=200)
    reference_tokens: int = Field(default=4096, ge=512)
    compare_plain_lora: bool = True
    few_shot: Literal["auto"] | Annotated[int, Field(ge=0, le=64)] = 0
    quantized: tuple[
        Annotated[Literal["nf4", "int8", "q8_0", "q5_1", "q5_0", "q4_1", "q4_0"], BeforeValidator(simple_form)], ...
    ] = ()
    metrics: dict[str, Any] = Field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    task_folder: str = "."
    task_limit: int | None = Field(default=None, ge=1)


class RetentionConfig(Section):
    """What the adapter should give back of the base model's knowledge, after training; see docs/retention.md.

    `auto` filters or scales the adapter where that lowers the loss on reference text and the task's loss rises by no more than
    `tolerance`: a share of it (`1%`), nats per token (`0.02`), or null for 1 %. The rise and its standard error together must be within it. Text of `references`
    gives second moments and judges on other rows; `judges` only judge. Sets are `prose`, `code`, `self` (sampled from the base model), files or hub ids.
    `replay` is the share of the training's rows that are text of `references`, learnt beside the task's.
    `task_tokens`, `reference_tokens` and `judging_units` are the most that is read; a short training pays for less.
    `keep_moments` keeps the dataset's second moments (no rows) with the adapter; `earlier` names such files of earlier trainings of the same
    base, whose tasks are then kept as reference text is. A base that `export --to merged` made of such an adapter brings its own.
    """

    mode: Annotated[Literal["auto", "off"], BeforeValidator(switched)] = "auto"
    tolerance: str | None = Field(default=None, pattern=r"^\d+(\.\d+)?(e-?\d+)?%?$")
    references: tuple[str, ...] = Field(default=("prose",), min_length=1)
    judges: tuple[str, ...] = Field(default=("code",), min_length=1)
    replay: float = Field(default=0.0, ge=0, le=0.5)
    prior: float = Field(default=0.0, ge=0)
    task_tokens: int = Field(default=8192, ge=256)
    reference_tokens: int = Field(default=8192, ge=256)
    judging_units: int = Field(default=16, ge=2)
    max_error: float = Field(default=0.05, gt=0, lt=1)
    keep_moments: bool = False
    earlier: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _once(self) -> "RetentionConfig":
        names = [*self.references, *self.judges]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(
                f"`references` and `judges` name {twice[0]} twice; what gives second moments judges on other text by itself"
            )
        return self


class PromotionConfig(Section):
    """The registry entry and what a champion must show (docs/promotion.md).

    `improves`: metrics of which at least one must beat base and champion. `floors`: metric -> value to reach. `margins`: metric -> how
    much worse than base and champion it may be, which must then be shown. `max_forgetting`: the most that the loss on reference sets
    may rise, nats per token, one number or one a set. `seed_noise`: how far two seeds differ, in standard deviations of one row's
    paired difference; 0 looks at the rows alone; the folder of a run that `lora-select noise` measured it in.

    `approval: required` leaves an adapter that met every criterion a challenger until `lora-select approve`; after `approval_days`
    the request is over, and the same command asks again.
    """

    model_name: str | None = None
    approval: Literal["none", "required"] = "none"
    approval_days: float = Field(default=14.0, gt=0)
    improves: tuple[str, ...] = Field(default=("loss",), min_length=1)
    floors: dict[str, float] = Field(default_factory=dict)
    margins: dict[str, Annotated[float, Field(ge=0)]] = Field(default_factory=dict)
    max_forgetting: Annotated[float, Field(gt=0)] | dict[str, Annotated[float, Field(gt=0)]] = 0.5
    seed_noise: Annotated[float, Field(ge=0)] | str = 0.28


class CostConfig(Section):
    """Prices for the evidence: of an hour of one GPU (or of one machine, on CPUs), of a kilowatt hour; null where not known.

    `watts` is the power of one GPU or one CPU thread while training, used where the machine has no energy counters.
    """

    per_device_hour: float | None = Field(default=None, ge=0)
    per_kwh: float | None = Field(default=None, ge=0)
    currency: str = Field(default="EUR", pattern=r"^[A-Z]{3}$")
    watts: float | None = Field(default=None, gt=0)


class TrackingConfig(Section):
    """Where MLflow is: by default where `MLFLOW_TRACKING_URI` says, else a file in the working directory; null tracks nothing.

    `system_metrics` samples the machine's load beside the training, as `system/*`.

    Prefect is found by its own `PREFECT_API_URL`, or an ephemeral server is used. `${NAME}` in the address is filled in from the
    environment, so that no password need stand in a file. One that does is hidden wherever the config is written or shown.
    """

    uri: str | None = Field(default_factory=default_uri, repr=False)
    experiment: str = "lora-select"
    system_metrics: bool = True

    @field_serializer("uri")
    def _without_password(self, uri: str | None) -> str | None:
        return None if uri is None else masked(uri)


class RecipesConfig(Section):
    """The trainers that `recommend` writes files for. They change nothing that is measured, chosen or trained here."""

    trainers: tuple[Literal["peft", "trl", "llamafactory", "axolotl", "ms-swift", "unsloth"], ...] = ("peft",)


class DiagnosticsConfig(Section):
    """What is measured besides the spectra. It decides nothing. `curvature`: of the default candidate's adapter at its start."""

    curvature: bool = False


class RunConfig(Section):
    """One run, whole. `name` is what it is called where it is listed; the dataset's by default."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    seed: int = Field(default=0, ge=0)
    runs_dir: str = "runs"
    base_model: BaseModelConfig
    dataset: DatasetConfig
    gate: GateConfig = GateConfig()
    analysis: AnalysisConfig = AnalysisConfig()
    selection: SelectionConfig = SelectionConfig()
    training: TrainingConfig = TrainingConfig()
    retention: RetentionConfig = RetentionConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    promotion: PromotionConfig = PromotionConfig()
    cost: CostConfig = CostConfig()
    tracking: TrackingConfig = Field(default_factory=TrackingConfig)
    recipes: RecipesConfig = RecipesConfig()
    diagnostics: DiagnosticsConfig = DiagnosticsConfig()

    @model_validator(mode="before")
    @classmethod
    def _named(cls, values: Any) -> Any:
        dataset = values.get("dataset") if isinstance(values, dict) else None
        source = dataset.get("source") if isinstance(dataset, dict) else None
        return {"name": name_of(source), **values} if isinstance(source, str) else values

    @model_validator(mode="after")
    def _limits_known(self) -> "RunConfig":
        from lora_select.evaluation.gate import REFERENCE

        kept = self.retention
        known = [REFERENCE] if kept.mode == "off" else [*kept.references, *kept.judges]
        limits = self.promotion.max_forgetting
        unknown = sorted(set(limits) - set(known)) if isinstance(limits, dict) else []
        if unknown:
            raise ValueError(
                f"`promotion.max_forgetting` limits {unknown[0]}, which nothing measures; with `retention.mode: {kept.mode}` the sets are "
                + ", ".join(known)
            )
        return self

    @property
    def constraints(self) -> Constraints:
        """What the choice must respect; how many steps are planned is not known yet. What is measured merged must merge."""
        stage = self.training.zero_stage
        merged = self.selection.must_merge or bool(self.evaluation.quantized)
        return Constraints(
            **self.selection.model_copy(update={"must_merge": merged}).model_dump(exclude={"when_hopeless"}),
            quantized_base=self.base_model.quantize,
            zero_stage=0 if stage == "auto" else stage,
        )

    def digested(self) -> dict[str, Any]:
        """The fields that can change a result of the line: all but folders, addresses, how it came about, and what is written beside it."""
        beside = dict.fromkeys(("runs_dir", "tracking", "recipes", "diagnostics", "cost"), True)
        return self.model_dump(exclude={**beside, "dataset": {"registered", "allowed_folders"}})


def name_of(source: str) -> str:
    """A run's name from its dataset.

    Example:
        >>> name_of("data/My Rows.v2.jsonl"), name_of("sample:tweet-entities"), name_of("org/set")
        ('my-rows-v2', 'tweet-entities', 'set')
    """
    stem = re.sub(r"\.(jsonl|json|csv|parquet|txt)$", "", source.rstrip("/").rpartition("/")[2].rpartition(":")[2])
    return re.sub(r"[^a-z0-9]+", "-", stem.lower()).strip("-") or "run"
