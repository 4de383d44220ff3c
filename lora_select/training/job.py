"""What one training run is told: a JSON file that the supervisor and every rank read, and where its files are."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter

from lora_select.records import AdapterSpec, TrainingPlan, write_text

JOB = "job.json"
RESULT = "result.json"
METRICS = "metrics.jsonl"
LOG = "train.log"
LAUNCH = "launch.json"
PROBE = "probe.safetensors"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"


@dataclass(frozen=True)
class TrainingJob:
    """A training run.

    `train_tokens` and `probe_tokens` are token Parquet files; `initial_factors` is the safetensors file of a start that
    is not the default (None otherwise). Without a new step for `patience_seconds` the run is stopped as stuck.
    """

    spec: AdapterSpec
    plan: TrainingPlan
    base_path: str
    base_source: str
    train_tokens: str
    probe_tokens: str
    initial_factors: str | None = None
    patience_seconds: float = 1800.0


def write_job(folder: Path, job: TrainingJob) -> Path:
    """Write the job into its folder."""
    write_text(folder / JOB, json.dumps(dataclasses.asdict(job), indent=2, sort_keys=True) + "\n")
    return folder / JOB


def read_job(path: Path) -> TrainingJob:
    """Read what :func:`write_job` wrote."""
    return TypeAdapter(TrainingJob).validate_json(path.read_text(encoding="utf-8"))
