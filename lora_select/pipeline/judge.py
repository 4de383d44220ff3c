"""What judges the adapter: evaluation against base, plain LoRA and champion; the registry; the report."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.evaluation import gate
from lora_select.evaluation.evaluate import EvaluationOptions
from lora_select.evaluation.evaluate import evaluate as evaluate_library
from lora_select.pipeline import workspace
from lora_select.pipeline.stage import Context, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import Adapter, BaseModel, Dataset, DatasetProfile, Evaluation, Promotion, Report
from lora_select.report.report import ReportInputs, write_report
from lora_select.tracking import names, registry

CHAMPION = "champion"


def _evaluate(
    context: Context,
    *,
    adapter: StageRef,
    proof: StageRef,
    dataset: StageRef,
    profile: StageRef,
    base: BaseModel,
    rivals: Mapping[str, StageRef],
    options: Mapping[str, Any],
    model_name: str | None,
) -> Evaluation:
    del proof  # an adapter without proof is not judged
    trained, rows = context.load(adapter, Adapter), context.load(dataset, Dataset)
    tokens = context.load(profile, DatasetProfile).eval_tokens_file.path
    others = {name: _adapter_folder(context, ref) for name, ref in rivals.items()}
    champion, champion_version = _champion(context, model_name, trained)
    made = evaluate_library(
        base,
        _adapter_folder(context, adapter),
        eval_tokens=context.folder_of(profile) / tokens,
        eval_rows=context.folder_of(dataset) / rows.eval_file.path,
        adapter_digest=trained.digest,
        dataset_digest=rows.digest,
        options=EvaluationOptions(**options),
        others=others | champion,
        folder=context.folder,
        progress=context.report,
    )
    return dataclasses.replace(made, champion_version=champion_version)


def _adapter_folder(context: Context, ref: StageRef) -> Path:
    return context.folder_of(ref) / context.load(ref, Adapter).directory


def _champion(context: Context, model_name: str | None, adapter: Adapter) -> tuple[dict[str, Path], str | None]:
    """The present champion's folder, downloaded once, and its version; nothing when there is no registry, none, or it is this one."""
    if model_name is None or context.place.tracker is None:
        return {}, None
    tracking = context.place.tracker.store
    version = registry.by_alias(tracking, model_name)
    if version is None or version.adapter_digest == adapter.digest:
        return {}, None
    kept = context.folder / f"{CHAMPION}-{version.version}"
    if not kept.is_dir():
        shutil.rmtree(kept.with_suffix(".part"), ignore_errors=True)
        registry.download(tracking, version, kept.with_suffix(".part"))
        kept.with_suffix(".part").rename(kept)
    return {CHAMPION: kept / registry.FOLDER}, version.version


def _promote(
    context: Context,
    *,
    adapter: StageRef,
    evaluation: StageRef,
    model_name: str,
    max_forgetting: float,
    tracking_uri: str,
) -> Promotion:
    del tracking_uri  # in the key only: another registry is another promotion
    trained, judged = context.load(adapter, Adapter), context.load(evaluation, Evaluation)
    assert context.place.tracker is not None  # the line asks for no promotion without a registry
    tracking = context.place.tracker.store
    before = registry.by_alias(tracking, model_name)
    rival = None if before is None or before.adapter_digest == trained.digest else before.version
    if judged.champion_version != rival:  # the champion changed since: what was measured says nothing of this one
        judged = dataclasses.replace(judged, against={})
    alias, reasons = gate.decide(judged, rival, max_forgetting=max_forgetting)
    run_id = context.place.tracker.run_id("adapter") or context.place.tracker.parent
    version = registry.register(tracking, model_name, run_id, trained, context.folder_of(adapter))
    tags = {"gate.reasons": " ".join(reasons), "evaluation.sha256": evaluation.digest}
    for name in {names.CHALLENGER, alias}:
        registry.set_alias(tracking, model_name, version.version, name, tags=tags)
    return Promotion(model_name, version.version, alias, rival, reasons)


def _report(context: Context, *, stages: Mapping[str, StageRef], base: BaseModel) -> Report:
    folders = {name: context.folder_of(ref) for name, ref in stages.items()}
    found = {
        name: records.read(names.record_type(name), folder / workspace.RECORD_FILE) for name, folder in folders.items()
    }
    inputs = ReportInputs(
        base=base, records=found, folders=folders, link=context.place.tracker.link if context.place.tracker else ""
    )
    return write_report(inputs, context.folder)


evaluate = Stage("evaluate", Evaluation, _evaluate, retries=1)
promote = Stage("promote", Promotion, _promote, retries=1)
report = Stage("report", Report, _report)
