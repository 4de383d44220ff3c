"""What a run can be answered for with: the evidence folder in standard forms."""

import datetime
from collections.abc import Mapping
from pathlib import Path

import lora_select
from lora_select.audit.signature import signing_key
from lora_select.config import CostConfig
from lora_select.evidence import EvidenceInputs, cost, write_evidence
from lora_select.evidence.cost import Prices
from lora_select.pipeline.stage import Context, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import (
    Adapter,
    BaseModel,
    Dataset,
    DatasetProfile,
    Decision,
    Evaluation,
    EvidenceFiles,
    Promotion,
    ReloadCheck,
    TrainingPlan,
    sha256_file,
)
from lora_select.records.digests import library_digest

LOCK = Path(lora_select.__file__).parents[1] / "infra" / "lock" / "base.txt"
"""The file of pinned packages, where the library runs from its repository."""


def _document(
    context: Context,
    *,
    stages: Mapping[str, StageRef],
    base: BaseModel,
    name: str,
    run: str,
    config_sha256: str,
    prices: CostConfig,
) -> EvidenceFiles:
    adapter, plan = context.load(stages["served"], Adapter), context.load(stages["plan"], TrainingPlan)
    profile = context.load(stages["profile"], DatasetProfile)
    promotion = context.load(stages["promotion"], Promotion) if "promotion" in stages else None
    inputs = EvidenceInputs(
        name=name,
        run_key=run,
        base=base,
        dataset=context.load(stages["dataset"], Dataset),
        profile=profile,
        decision=context.load(stages["decision"], Decision),
        plan=plan,
        adapter=adapter,
        adapter_folder=context.folder_of(stages["served"]) / adapter.directory,
        proof=context.load(stages["proof"], ReloadCheck),
        evaluation=context.load(stages["evaluation"], Evaluation),
        cost=cost.measured(plan, adapter, base, profile, adapter.energy, Prices(**prices.model_dump())),
        config_sha256=config_sha256,
        library_sha256=library_digest(),
        lock_sha256=sha256_file(LOCK) if LOCK.is_file() else None,
        made=datetime.datetime.now(datetime.UTC),
        verdict=promotion.verdict if promotion else None,
        promotion=promotion,
    )
    dataset_folder = context.folder_of(stages["dataset"])
    return write_evidence(inputs, context.folder, dataset_folder=dataset_folder, key=signing_key())


def signed_by() -> str | None:
    """SHA-256 of the file of the key that the environment names, for the stage's key: evidence that another key signed is other evidence.

    Raises:
        InputError: the environment names a file that is not there.
    """
    key = signing_key()
    return None if key is None else sha256_file(key.path)


document = Stage("evidence", EvidenceFiles, _document)
