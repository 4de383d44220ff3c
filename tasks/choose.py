"""Stages that choose: the spectral pass over real microbatches, and the pure decision."""

from collections.abc import Mapping
from typing import Any

from lora_select import models
from lora_select.data import tokens
from lora_select.data.microbatches import draw
from lora_select.racing import Evidence
from lora_select.racing import race as race_library
from lora_select.records import BaseModel, DatasetProfile, Decision, Race, SelectionInputs, Spectra
from lora_select.selection.rule import select as select_library
from lora_select.spectral.analyze import analyze as analyze_library
from lora_select.training.machine import Machine
from lora_select.variants import CATALOGUE
from tasks.stage import Context, Stage
from tasks.store import StageRef


def _analyze(
    context: Context,
    *,
    profile: StageRef,
    base: BaseModel,
    microbatches: int,
    microbatch_size: int,
    sketch_size: int,
    seed: int,
    device: str,
) -> Spectra:
    measured = context.load(profile, DatasetProfile)
    rows = tokens.read_rows(context.folder_of(profile) / measured.train_tokens_file.path)
    batches = draw(
        rows,
        microbatches=microbatches,
        size=microbatch_size,
        seed=seed,
        pad_id=models.pad_id(models.load_tokenizer(base.path)),
    )
    return analyze_library(
        models.load_model(base.path, dtype="float32", device=device),
        batches,
        loss_fn=tokens.label_loss,
        variants=CATALOGUE,
        sketch_size=sketch_size,
        seed=seed,
        folder=context.folder,
        dataset_digest=measured.dataset_digest,
        model_digest=base.digest,
        progress=context.report,
    )


def _race(
    context: Context,
    *,
    profile: StageRef,
    spectra: StageRef,
    base: BaseModel,
    constraints: SelectionInputs,
    training: Mapping[str, Any],
    machine: Machine,
) -> Race:
    """Short trainings of the shortlist in this process; each probe is a run of its own in MLflow."""
    evidence = Evidence(
        context.load(profile, DatasetProfile),
        context.load(spectra, Spectra),
        context.folder_of(profile),
        context.folder_of(spectra),
    )
    made = race_library(evidence, base, constraints, training, machine, folder=context.folder, progress=context.report)
    for probe in made.probes:
        label = f"probe-{probe.key}-{probe.learning_rate:g}-{probe.steps}"
        context.place.tracker.begin(label)
        context.place.tracker.log(label, probe)
        context.place.tracker.end(label)
    return made


def _select(
    context: Context, *, profile: StageRef, spectra: StageRef, constraints: SelectionInputs, race: StageRef | None
) -> Decision:
    raced = context.load(race, Race) if race else None
    return select_library(context.load(profile, DatasetProfile), context.load(spectra, Spectra), constraints, raced)


analyze = Stage("analyze", Spectra, _analyze, retries=1)
race = Stage("race", Race, _race)
select = Stage("select", Decision, _select)
