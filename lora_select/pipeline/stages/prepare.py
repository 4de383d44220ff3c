"""What is measured before anything is chosen: rows, profile, examples in the prompt, spectra."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select import models, records
from lora_select.config import AnalysisConfig, GateConfig, SelectionConfig
from lora_select.data import profile as profiling
from lora_select.data.labels import tokens
from lora_select.data.microbatches import MINIMUM, draw
from lora_select.data.reading.formats import RowOptions
from lora_select.pipeline.stage import Context, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import AdapterCosts, BaseModel, Dataset, DatasetProfile, FewShot, Gate, Spectra
from lora_select.variants import LoRA

if TYPE_CHECKING:
    from torch import Tensor


GATE = "gate.json"
"""The gate's record, beside the rows that it looked at."""
MOST = 32
"""Microbatches of a spectral pass that is read for more than LoRA's displacement."""
FINISH_TOKENS = 1_300
"""What the pass does once a layer, weights' singular values and the like, costs as much as so many trained tokens (benchmarks/spectral/pass_cost.py)."""
TOKEN_COST = 2.0
"""A token of the pass over one of the training, measured there: its microbatches are short, and sketches are added."""
ROW_OPTIONS = ("columns", "ignore_columns", "reasoning", "learn")
"""What the config's dataset section says of the rows themselves."""


def _intake(
    context: Context,
    *,
    options: Mapping[str, Any],
    rows: Mapping[str, Any],
    gate: GateConfig,
    base: BaseModel,
) -> Dataset:
    from lora_select.data.gate import check, mend

    dataset, found = mend.gated_intake(
        folder=context.folder,
        actions=gate.actions,
        fix=gate.apply_fixes,
        context=check.context(base.path, gate.benchmarks),
        progress=context.report,
        options=RowOptions(rows["columns"], frozenset(rows["ignore_columns"]), rows["reasoning"], rows["learn"]),
        **options,
    )
    records.write(context.folder / GATE, found)
    return dataclasses.replace(dataset, gate_file=records.file_ref(context.folder / GATE, context.folder))


def _gate(context: Context, *, dataset: StageRef) -> Gate:
    """What the gate found when the rows were read.

    Raises:
        InputError: a rule whose action is to refuse found something.
    """
    from lora_select.data.gate import check

    folder = context.folder_of(dataset)
    found = records.read(Gate, folder / GATE)
    check.refuse(found)
    for file in (found.findings_file, found.removed_file):
        if file is not None:
            shutil.copyfile(folder / file.path, context.folder / file.path)
    return found


def _profile(
    context: Context,
    *,
    dataset: StageRef,
    base: BaseModel,
    max_length: int,
    max_unusable: float,
    base_loss_rows: int,
    device: str,
) -> DatasetProfile:
    return profiling.profile(
        context.load(dataset, Dataset),
        context.folder_of(dataset),
        base,
        max_length=max_length,
        max_unusable=max_unusable,
        base_loss_rows=base_loss_rows,
        dtype="float32",
        device=device,
        folder=context.folder,
        progress=context.report,
    )


def _spectra(
    context: Context,
    *,
    profile: StageRef,
    base: BaseModel,
    microbatches: int,
    microbatch_size: int,
    sketch_size: int,
    structure: bool,
    seed: int,
    device: str,
) -> Spectra:
    from lora_select.spectral.measuring_pass import analyze
    from lora_select.variants import CATALOGUE

    measured = context.load(profile, DatasetProfile)
    size = {"microbatches": microbatches, "size": microbatch_size, "seed": seed}
    return analyze(
        models.load_model(base.path, dtype="float32", device=device),
        drawn(context.folder_of(profile), measured, base, **size),
        loss_fn=tokens.label_loss,
        variants=CATALOGUE,
        sketch_size=sketch_size,
        structure=structure,
        seed=seed,
        folder=context.folder,
        dataset_digest=measured.dataset_digest,
        model_digest=base.digest,
        progress=context.report,
    )


def _few_shot(
    context: Context, *, dataset: StageRef, profile: StageRef, base: BaseModel, options: Mapping[str, Any]
) -> FewShot:
    """Of an untrained model nothing is known yet but what the profile measured of it."""
    from lora_select.evaluation.few_shot import measure_few_shot
    from lora_select.evaluation.material import EvaluationOptions
    from lora_select.evaluation.model_losses import of_profile

    profiled, asked = context.load(profile, DatasetProfile), EvaluationOptions(**options)
    return measure_few_shot(
        base,
        context.load(dataset, Dataset),
        eval_tokens=context.folder_of(profile) / profiled.eval_tokens_file.path,
        rows_folder=context.folder_of(dataset),
        max_length=profiled.max_length,
        options=asked,
        folder=context.folder,
        known=of_profile(profiled, asked),
        progress=context.report,
    )


def _costs(
    context: Context,
    *,
    profile: StageRef,
    spectra: StageRef,
    base: BaseModel,
    microbatches: int,
    microbatch_size: int,
    seed: int,
    curvature: bool,
    quantize: Any,
) -> AdapterCosts:
    """What an adapter meets besides the gradient; decides nothing."""
    from lora_select.diagnostics import costs as diagnostics

    size = {"microbatches": microbatches, "size": microbatch_size, "seed": seed}
    return diagnostics.measure(
        context.load(spectra, Spectra),
        context.folder_of(spectra),
        Path(base.path),
        drawn(context.folder_of(profile), context.load(profile, DatasetProfile), base, **size)[0],
        curvature=curvature,
        quantize=quantize,
        progress=context.report,
    )


def reads_shares(selection: SelectionConfig) -> bool:
    """Whether a race, a claim or a named variant reads more of the pass than LoRA's displacement."""
    return bool(selection.race_budget or any(selection.claims.values()) or selection.variant not in (None, LoRA.name))


def microbatches(analysis: AnalysisConfig, selection: SelectionConfig, planned_rows: int, row_tokens: float) -> int:
    """How many microbatches the spectral pass reads.

    Args:
        analysis: `microbatches` where it is a number; else `budget` is a share of the training's compute.
        selection: what reads more of the pass than LoRA's displacement gets `MOST`.
        planned_rows: steps of the planned training times its effective batch size.
        row_tokens: tokens of a row in the mean.
    """
    if analysis.microbatches != "auto":
        return analysis.microbatches
    if reads_shares(selection):
        return MOST
    tokens = analysis.budget * planned_rows * row_tokens - FINISH_TOKENS
    return min(MOST, max(MINIMUM, int(tokens / (TOKEN_COST * analysis.microbatch_size * row_tokens))))


def drawn(
    folder: Path, profile: DatasetProfile, base: BaseModel, *, microbatches: int, size: int, seed: int
) -> "list[dict[str, Tensor]]":
    """The microbatches of the spectral pass; `folder` is the profile's."""
    rows = tokens.read_rows(folder / profile.train_tokens_file.path)
    pad_id = models.pad_id(models.load_tokenizer(base.path))
    return draw(rows, microbatches=microbatches, size=size, seed=seed, pad_id=pad_id)


intake = Stage("intake", Dataset, _intake)
gate = Stage("gate", Gate, _gate)
profile = Stage("profile", DatasetProfile, _profile, retries=1)
spectra = Stage("analyze", Spectra, _spectra, retries=1)
few_shot = Stage("few-shot", FewShot, _few_shot, retries=1)
costs = Stage("costs", AdapterCosts, _costs)
