"""What judges the adapter: evaluation against base, plain LoRA and champion; the registry; the report."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select import models, records
from lora_select.audit import run_entries, signature
from lora_select.audit.alias.champion import AWAY, OTHER
from lora_select.audit.alias.champion import champion as champion_now
from lora_select.audit.alias.promotion import Candidate, Judgement, Office
from lora_select.audit.alias.promotion import promote as promote_library
from lora_select.audit.books import grounds
from lora_select.audit.books.ledger import in_folder
from lora_select.config import CostConfig, PromotionConfig
from lora_select.data.intake import own_split
from lora_select.data.labels.tokens import read_rows
from lora_select.evaluation import criteria, gate
from lora_select.evaluation.evaluate import EvaluationOptions
from lora_select.evaluation.evaluate import evaluate as evaluate_library
from lora_select.evaluation.few_shot import earlier
from lora_select.evaluation.model_losses import label_counts, of_profile, row_losses
from lora_select.evaluation.policy import Policy
from lora_select.evaluation.seed_noise import estimate
from lora_select.evidence import cost
from lora_select.evidence.cost import Prices
from lora_select.pipeline import workspace
from lora_select.pipeline.history import seed_noise
from lora_select.pipeline.stage import Context, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import (
    Adapter,
    BaseModel,
    Dataset,
    DatasetProfile,
    Evaluation,
    FewShot,
    Gate,
    MetricComparison,
    Promotion,
    Report,
    Retention,
    SeedNoise,
)
from lora_select.report.report import ReportInputs, write_report
from lora_select.tracking import names, registry

CHAMPION = "champion"
BATCH = 8


def _evaluate(
    context: Context,
    *,
    adapter: StageRef,
    dataset: StageRef,
    profile: StageRef,
    base: BaseModel,
    rivals: Mapping[str, StageRef],
    options: Mapping[str, Any],
    model_name: str | None,
    few_shot: StageRef | None = None,
) -> Evaluation:
    trained, rows = context.load(adapter, Adapter), context.load(dataset, Dataset)
    profiled, asked = context.load(profile, DatasetProfile), EvaluationOptions(**options)
    others = {name: _adapter_folder(context, ref) for name, ref in rivals.items()}
    champion, champion_version = _champion(context, model_name, trained)
    shown = context.load(few_shot, FewShot) if few_shot else None
    before = earlier(shown, context.folder_of(few_shot)) if few_shot and shown else {}
    made = evaluate_library(
        base,
        _adapter_folder(context, adapter),
        eval_tokens=context.folder_of(profile) / profiled.eval_tokens_file.path,
        eval_rows=context.folder_of(dataset) / rows.eval_file.path,
        adapter_digest=trained.digest,
        dataset_digest=rows.digest,
        options=asked,
        others=others | champion,
        folder=context.folder,
        progress=context.report,
        before={"base": of_profile(profiled, asked), **before},
    )
    notes = (*made.notes, *(shown.notes if shown else ()))
    return dataclasses.replace(made, champion_version=champion_version, notes=notes)


def _adapter_folder(context: Context, ref: StageRef) -> Path:
    return context.folder_of(ref) / context.load(ref, Adapter).directory


def _champion(context: Context, model_name: str | None, adapter: Adapter) -> tuple[dict[str, Path], str | None]:
    """The present champion's folder, downloaded once, and its version.

    Nothing when there is no registry, no champion, it is this adapter, or MLflow is away, which is said.
    """
    if model_name is None or context.place.tracker is None:
        return {}, None
    tracking = context.place.tracker.store
    found = champion_now(tracking, model_name, adapter.digest)
    if found.standing == AWAY:
        context.place.tracker.tell(f"the evaluation goes on without the champion: {found.why}")
    if found.standing != OTHER or found.version is None:
        return {}, None
    kept = context.folder / f"{CHAMPION}-{found.version.version}"
    if not kept.is_dir():
        shutil.rmtree(kept.with_suffix(".part"), ignore_errors=True)
        registry.download(tracking, found.version, kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    return {CHAMPION: kept / registry.FOLDER}, found.version.version


def _promote(
    context: Context,
    *,
    adapter: StageRef,
    evaluation: StageRef,
    retention: StageRef | None,
    model_name: str,
    settings: PromotionConfig,
    run: str,
    rows: Mapping[str, StageRef] | None = None,
) -> Promotion:
    measured, source = seed_noise(settings.seed_noise) if isinstance(settings.seed_noise, str) else (None, None)
    if measured and source:
        shutil.copyfile(source.folder / measured.rows_file.path, context.folder / measured.rows_file.path)
    served = "served" if retention_changed(context, retention) else "adapter"
    judged = context.load(evaluation, Evaluation)
    kept = None if retention is None else context.load(retention, Retention)
    looks = context.load(adapter, Adapter).validation
    verdict = gate.judge(
        judged,
        judged.champion_version,
        policy(settings, measured),
        rises(kept),
        base_was_best=looks is not None and looks.base_was_best,
        leaks=leaks(context.load(rows["dataset"], Dataset), context.load(rows["gate"], Gate)) if rows else 0,
    )
    unmet = {
        f"{item.metric} {item.test} {item.rival or ''}".strip(): item.reason
        for item in verdict.criteria
        if item.outcome != criteria.PASSED
    }
    root, tracker = context.place.root, context.place.tracker
    assert tracker is not None  # the line asks for no promotion without a registry
    _signed(context, _adapter_folder(context, adapter), run_entries.adapter_signature(root / run))
    candidate = Candidate(
        model=model_name,
        run=run,
        folder=context.folder_of(adapter),
        mlflow_run=tracker.run_id(served) or tracker.parent,
        digests=grounds.digests(root / run) | ({"noise": source.record} if source else {}),
        compared_with=judged.champion_version,
    )
    office = Office(in_folder(root), tracker.store)
    made = promote_library(
        office,
        candidate,
        Judgement(verdict.answer == gate.PROMOTE, unmet, verdict.reasons),
        approval=settings.approval,
        approval_days=settings.approval_days,
    )
    return dataclasses.replace(made, verdict=dataclasses.replace(verdict, seed_noise=measured))


def _signed(context: Context, folder: Path, signature_file: Path) -> None:
    """Where a public key asks for it, sign the adapter if a key is there, and take no adapter without a signature that holds."""
    if (key := signature.signing_key()) and signature.verify_key():
        signature_file = context.folder / signature.ADAPTER_SIGNATURE
        signature.sign(folder, signature_file, key)
    signature.require(folder, signature_file)


def leaks(dataset: Dataset, found: Gate) -> int:
    """Evaluation rows that the user named, are given away by the training rows and were left there. Our own split is no such promise."""
    mended = {"fix"} if found.removed_file else set()
    left = [item.count for item in found.findings if item.rule == "leak" and item.action not in mended]
    return 0 if own_split(dataset) else sum(left)


def policy(settings: PromotionConfig, noise: SeedNoise | None) -> Policy:
    """What the gate holds an evaluation against: the config's own number for the seed noise, or what a measurement asks for."""
    told = settings.model_dump(exclude={"model_name", "approval", "approval_days"})
    told["seed_noise"] = noise.asked if noise else settings.seed_noise
    return Policy(**told)


def rises(made: Retention | None) -> dict[str, MetricComparison] | None:
    """What the served adapter does to each reference set; None where nothing but the evaluation's own text was looked at."""
    if made is None:
        return None
    arm = "raw" if made.decision.choice == "none" else made.decision.choice
    return {one.name: one.rise[arm] for one in made.references}


def retention_changed(context: Context, retention: StageRef | None) -> bool:
    """Whether what is served is not what training left."""
    return retention is not None and context.load(retention, Retention).decision.choice != "none"


def _noise(
    context: Context,
    *,
    adapters: Mapping[str, StageRef],
    dataset: StageRef,
    profile: StageRef,
    base: BaseModel,
    run: str,
    device: str,
    quantize: str | None,
) -> SeedNoise:
    """The held-out loss of each adapter, by the name of its seed."""
    rows = read_rows(context.folder_of(profile) / context.load(profile, DatasetProfile).eval_tokens_file.path)
    labels, losses = label_counts(rows), []
    pad = models.pad_id(models.load_tokenizer(base.path))
    for index, ref in enumerate(adapters.values()):
        context.report(index, len(adapters), "seeds")
        model = models.load_model(base.path, device=device, quantize=quantize)
        losses.append(row_losses(models.with_adapter(model, _adapter_folder(context, ref)), rows, pad, BATCH, device))
    made = estimate(losses, labels)
    text = json.dumps({"labels": labels, **dict(zip(adapters, losses, strict=True))}) + "\n"
    records.write_text(context.folder / "seed-rows.json", text)
    return SeedNoise(
        run=run,
        base_digest=base.digest,
        dataset_digest=context.load(dataset, Dataset).digest,
        seeds=tuple(map(int, adapters)),
        adapters=tuple(context.load(ref, Adapter).digest for ref in adapters.values()),
        rows=len(rows),
        rows_file=records.file_ref(context.folder / "seed-rows.json", context.folder),
        **vars(made),
    )


def _report(context: Context, *, stages: Mapping[str, StageRef], base: BaseModel, prices: CostConfig) -> Report:
    folders = {name: context.folder_of(ref) for name, ref in stages.items()}
    found = {
        name: records.read(names.record_type(name), folder / workspace.RECORD_FILE) for name, folder in folders.items()
    }
    plan, adapter, profile = found["plan"], found["adapter"], found["profile"]
    told = Prices(**prices.model_dump())
    inputs = ReportInputs(
        base=base,
        records=found,
        folders=folders,
        link=context.place.tracker.link if context.place.tracker else "",
        costs=(
            cost.planned(plan, base, profile, adapter.spec.num_parameters, told),
            cost.measured(plan, adapter, base, profile, adapter.energy, told),
        ),
    )
    return write_report(inputs, context.folder)


evaluate = Stage("evaluate", Evaluation, _evaluate, retries=1)
promote = Stage("promote", Promotion, _promote, retries=1)
noise = Stage("seed-noise", SeedNoise, _noise, retries=1)
report = Stage("report", Report, _report)
