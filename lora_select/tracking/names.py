"""Every name that appears in MLflow, in one place.

A metric has the same key for every variant (the variant is a parameter), so that any two runs can be laid side by side.
MLflow allows letters, digits, `/ . - _ :` and spaces in a key, and 250 characters.
"""

import re

# --- tags ------------------------------------------------------------------------------------------------------------

RUN_KEY = "lora.run_key"
KIND = "lora.kind"
PIPELINE = "pipeline"
STAGE_RUN = "stage"
STAGE = "lora.stage"
COMPARED = "lora.compared"
"""`true` on a run that is a row of the comparison view: a whole pipeline run, or a rival adapter trained beside it."""
TOKEN = "lora.token"
"""What makes a child the same child when its creation is repeated."""
LIBRARY_DIGEST = "library.digest"
FLOW_RUN_ID = "prefect.flow_run_id"
DATASET_SHA256 = "dataset.sha256"
MODEL_SHA256 = "model.sha256"
ADAPTER_SHA256 = "adapter.sha256"
ADAPTER_FILES = "adapter.files"
DECISION_SHA256 = "decision.sha256"
CHOICE = "choice"
ROLE = "role"
"""`champion` or `challenger`, as the registry was told."""
STAGES = "stages"
"""One tag for all stages, JSON: label -> whether the run did it or reused it, and the run that did."""
GIT_COMMIT = "git.commit"
TRACKING_DEGRADED = "tracking.degraded"
PARENT_RUN_ID = "mlflow.parentRunId"
RUN_NAME = "mlflow.runName"
DESCRIPTION = "mlflow.note.content"
"""What MLflow's page shows as the run's description, as Markdown."""

LABELS = {
    "Dataset": "dataset",
    "BaseModel": "base_model",
    "Gate": "gate",
    "VersionChange": "change",
    "DatasetProfile": "profile",
    "FewShot": "few_shot",
    "Spectra": "spectra",
    "AdapterCosts": "costs",
    "Race": "race",
    "Trial": "probe",
    "Decision": "decision",
    "TrainingPlan": "plan",
    "Adapter": "adapter",
    "ReloadCheck": "proof",
    "ReferenceText": "references",
    "Retention": "retention",
    "TasksOverTime": "tasks",
    "Evaluation": "evaluation",
    "SeedNoise": "seed-noise",
    "Promotion": "promotion",
    "EvidenceFiles": "evidence",
    "Cost": "cost",
    "Report": "report",
}
"""Record type -> the stage label of the pipeline's own line. Any other label (`adapter-plain-lora`) is a rival's:
its numbers stay in its own run and never mix with the parent's."""

CHALLENGER = "challenger"
CHAMPION = "champion"

# --- parameters ------------------------------------------------------------------------------------------------------

VARIANT = "variant"
TARGETS = "targets"
R = "r"
LORA_ALPHA = "lora_alpha"
SCALE = "scale"
INIT = "init"
LEARNING_RATE = "learning_rate"
SPEC_PARAMS = (VARIANT, TARGETS, R, LORA_ALPHA, SCALE, INIT, LEARNING_RATE)
"""Rank, alpha and targets are separate parameters: the parallel-coordinates plot drops what is packed or constant."""

# --- metrics ---------------------------------------------------------------------------------------------------------

TRAIN_LOSS = "train/loss"
TRAIN_STEP = {
    "loss": TRAIN_LOSS,
    "learning_rate": "train/learning_rate",
    "grad_norm": "train/grad_norm",
    "tokens": "train/tokens",
    "tokens_per_second": "train/tokens_per_s",
    "memory_gib": "train/memory_gib",
    "validation_loss": "validation/loss",
}
"""Field of `StepMetrics` -> metric key; the step is the optimizer step."""

COST_TOKENS_PER_SECOND = "cost/tokens_per_s"
COST_TRAIN_MINUTES = "cost/train_minutes"
COST_ANALYZE_MINUTES = "cost/analyze_minutes"
COST_RACE_MINUTES = "cost/race_minutes"
COST_PEAK_MEMORY = "cost/peak_memory_gib"
ADAPTER_PARAMETERS = "adapter/parameters"

COMPARISON_FIELDS = ("base", "adapted", "difference", "interval_low", "interval_high", "rows", "significant")

_KEY = re.compile(r"[^\w/.\-: ]")


def evaluation(metric: str, field: str) -> str:
    """The key of one number of one comparison.

    >>> evaluation("loss", "adapted")
    'eval/loss/adapted'
    """
    return key(f"eval/{metric}/{field}")


def against(other: str, metric: str, field: str) -> str:
    """The key of one number of a comparison with another adapter (`plain_lora`, `champion`).

    >>> against("champion", "loss", "difference")
    'eval/loss/vs_champion/difference'
    """
    return key(f"eval/{metric}/vs_{other}/{field}")


def stored(form: str, metric: str, field: str) -> str:
    """The key of one number of the merged model in a form of fewer bits.

    >>> stored("nf4", "loss", "adapted")
    'eval/loss/merged_nf4/adapted'
    """
    return key(f"eval/{metric}/merged_{form}/{field}")


def few_shot(metric: str, field: str) -> str:
    """The key of one number of the untrained model with examples in its prompt, beside the same without.

    >>> few_shot("loss", "adapted")
    'few_shot/loss/adapted'
    """
    return key(f"few_shot/{metric}/{field}")


def key(text: str) -> str:
    """`text` as MLflow accepts it in a key: other characters become `_`, at most 250 are kept.

    >>> key("lora@8 α")
    'lora_8 α'
    """
    return _KEY.sub("_", text)[:250]


def record_type(label: str) -> type:
    """The type of record that a stage label names.

    >>> record_type("promotion").__name__
    'Promotion'
    """
    from lora_select import records

    return getattr(records, next(kind for kind, name in LABELS.items() if name == label))
