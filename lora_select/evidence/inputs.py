"""What the evidence is made from: records, folders, digests. No form reads anything else."""

import datetime
import importlib.metadata
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import final

from lora_select.records import (
    Adapter,
    BaseModel,
    Cost,
    Dataset,
    DatasetProfile,
    Decision,
    Evaluation,
    Promotion,
    ReloadCheck,
    TrainingPlan,
    Verdict,
)

PACKAGES = ("torch", "transformers", "peft", "deepspeed", "accelerate", "safetensors", "datasets")


@final
@dataclass(frozen=True)
class EvidenceInputs:
    """The records of one run.

    `adapter_folder` is the PEFT folder itself. `verdict` is the gate's, None before it was asked. `config_sha256`,
    `library_sha256` and `lock_sha256` are hex digests of the config without addresses, of the library's source and of the file of
    pinned packages (None where it runs without one). `made` is when, in UTC.
    """

    name: str
    run_key: str
    base: BaseModel
    dataset: Dataset
    profile: DatasetProfile
    decision: Decision
    plan: TrainingPlan
    adapter: Adapter
    adapter_folder: Path
    proof: ReloadCheck
    evaluation: Evaluation
    cost: Cost
    config_sha256: str
    library_sha256: str
    lock_sha256: str | None
    made: datetime.datetime
    verdict: Verdict | None = None
    promotion: Promotion | None = None
    packages: Mapping[str, str] = field(default_factory=lambda: installed(PACKAGES))
    licence: str | None = None
    """An SPDX identifier for the adapter; None where the user said nothing."""


def installed(names: tuple[str, ...]) -> dict[str, str]:
    """The versions of those of `names` that are installed."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
