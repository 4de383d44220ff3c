"""`lora-select recommend`: what to train, measured here, for people who train with another tool."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lora_select import analysis, models, prospect, racing, recipes, records
from lora_select.analysis import Progress
from lora_select.data import intake as intake_library
from lora_select.data import tokens as token_rows
from lora_select.data.profile import profile as profile_library
from lora_select.prospect import Wish
from lora_select.recipes import Emitted
from lora_select.recipes.recipe import Order
from lora_select.recipes.rows import read as read_rows
from lora_select.records import (
    BaseModel,
    Dataset,
    DatasetProfile,
    Decision,
    Race,
    SelectionInputs,
    Spectra,
    TrainingPlan,
)
from lora_select.records.digests import key_of, library_digest, source_digest
from lora_select.selection.constraints import check_names
from lora_select.selection.rule import select
from lora_select.training.planning.plan import Machine, detect_machine

MEASURED = "measured.json"
"""Names what dataset, profile and spectra of a folder were measured from; written last."""


@final
@dataclass(frozen=True)
class Measuring:
    """What is measured: sources as in a run's config, and the size of the pass. Nothing here depends on the tool."""

    model: str
    data: str
    max_length: int
    max_train_rows: int | None
    max_eval_rows: int
    microbatches: int
    microbatch_size: int
    sketch_size: int
    base_loss_rows: int
    seed: int


@final
@dataclass(frozen=True)
class Recommendation:
    """The answer. `measured_here` says whether the plan's speed was measured on this machine."""

    base: BaseModel
    dataset: Dataset
    profile: DatasetProfile
    decision: Decision
    plan: TrainingPlan
    emitted: tuple[Emitted, ...]
    notes: tuple[str, ...]
    measured_here: bool


def recommend(
    measuring: Measuring, wish: Wish, out: Path, say: Callable[[str], None], progress: Progress | None = None
) -> Recommendation:
    """Read, measure, choose, plan, write. What cannot work is refused as early as it is known.

    Args:
        measuring: what is measured; a folder that holds the same measurements is taken up.
        wish: constraints and tools.
        out: folder for the records and one folder a tool.
        say: gets a line for each thing done.
        progress: called with (done, total, what) while something takes long.

    Raises:
        InputError: an unusable input, an adapter or rows that a tool cannot express, or a model that does not fit.
    """
    machine = prospect.machine_of(wish)
    base = models.resolve(measuring.model)
    check_names(_inputs(wish, 1))
    if wish.variant is not None:
        recipes.refuse_named(wish.variant, wish.tools, wish.serve)
    out.mkdir(parents=True, exist_ok=True)
    dataset, profile = _profiled(measuring, base, out, machine, say, progress)
    prospect.refuse_early(wish, base, profile, machine)
    spectra = _spectra(measuring, base, profile, out, say, progress)
    records.write_text(out / MEASURED, _key(measuring, base) + "\n")
    rows = profile.train.trained
    inputs = _inputs(wish, math.ceil(rows * wish.epochs / wish.batch))
    race = _raced(measuring, wish, base, profile, spectra, inputs, out, machine, say, progress)
    decision = select(profile, spectra, inputs, race)
    records.write(out / "decision.json", decision)
    recipes.refuse(decision.choice, wish.tools, wish.serve)
    plan, here = prospect.planned(wish, measuring.seed, base, profile, decision.choice, machine, out)
    records.write(out / "plan.json", plan)
    order = Order(
        spec=decision.choice,
        base=base,
        plan=plan,
        rows=read_rows(dataset, out, base),
        quantize=wish.quantize,
        serve=wish.serve,
        max_length=measuring.max_length,
        start=None,
    )
    emitted = recipes.emit(order, wish.tools, out / spectra.tensors.path, out)
    return Recommendation(base, dataset, profile, decision, plan, emitted, _notes(order, wish.tools, out), here)


def _inputs(wish: Wish, steps: int) -> SelectionInputs:
    return SelectionInputs(
        serve=wish.serve,
        must_merge=wish.must_merge,
        quantized_base=wish.quantize,
        allow_modified_base=True,
        zero_stage=0,
        r=wish.r,
        variant=wish.variant,
        targets=wish.targets,
        learning_rate=wish.learning_rate,
        planned_steps=steps,
        max_parameters=None,
        claims={},
        race_budget=wish.race,
        prefer_retention=wish.prefer_retention,
    )


def _raced(
    measuring: Measuring,
    wish: Wish,
    base: BaseModel,
    profile: DatasetProfile,
    spectra: Spectra,
    inputs: SelectionInputs,
    out: Path,
    machine: Machine,
    say: Callable[[str], None],
    progress: Progress | None,
) -> Race | None:
    """The race that the budget pays for, on this machine; its probes are kept by what they depend on."""
    (out / "race.json").unlink(missing_ok=True)
    if not wish.race:
        return None
    told = {
        "measured": _key(measuring, base),
        "inputs": dataclasses.asdict(inputs),
        "batch": wish.batch,
        "epochs": wish.epochs,
    }
    folder = out / "race" / key_of(told)
    folder.mkdir(parents=True, exist_ok=True)
    race = racing.race(
        racing.Evidence(profile, spectra, out, out),
        base,
        inputs,
        prospect.training_of(wish, measuring.seed),
        detect_machine(prospect.here(machine)),
        folder=folder,
        progress=progress or (lambda *_: None),
    )
    records.write(out / "race.json", race)
    say(f"race       {len(race.probes)} probes of {' and '.join(map(str, race.rungs))} steps  ({race.seconds:.0f} s)")
    return race


def _profiled(
    measuring: Measuring,
    base: BaseModel,
    out: Path,
    machine: Machine,
    say: Callable[[str], None],
    progress: Progress | None,
) -> tuple[Dataset, DatasetProfile]:
    """Rows and profile, or those that the folder holds."""
    if _held(measuring, base, out):
        say(f"taken up: the measurements in {out} are of the same model, rows and settings")
        return records.read(Dataset, out / "dataset.json"), records.read(DatasetProfile, out / "profile.json")
    (out / MEASURED).unlink(missing_ok=True)
    dataset = intake_library.intake(
        source=measuring.data,
        name="recommend",
        folder=out,
        max_train_rows=measuring.max_train_rows,
        max_eval_rows=measuring.max_eval_rows,
    )
    records.write(out / "dataset.json", dataset)
    left = sum(item.count for item in dataset.rejected)
    why = ", ".join(f"{item.count} {item.reason}" for item in dataset.rejected)
    say(
        f"rows       {dataset.train_rows} to train, {dataset.eval_rows} held out"
        + (f"; {left} left out: {why}" if left else "")
    )
    profile = profile_library(
        dataset,
        out,
        base,
        max_length=measuring.max_length,
        base_loss_rows=measuring.base_loss_rows,
        dtype="float32",
        device=prospect.here(machine),
        folder=out,
        progress=progress,
    )
    records.write(out / "profile.json", profile)
    say(
        f"profile    {profile.train.tokens:,} tokens, {profile.train.label_tokens:,} of them learnt; the base loses "
        f"{profile.base_loss:.3f} ± {profile.base_loss_se:.3f} nats on each"
    )
    for warning in profile.warnings:
        say(f"           {warning}")
    return dataset, profile


def _spectra(
    measuring: Measuring,
    base: BaseModel,
    profile: DatasetProfile,
    out: Path,
    say: Callable[[str], None],
    progress: Progress | None,
) -> Spectra:
    if _held(measuring, base, out):
        return records.read(Spectra, out / "spectra.json")
    spectra = analysis.measure(
        token_rows.read_rows(out / profile.train_tokens_file.path),
        base,
        dataset_digest=profile.dataset_digest,
        size=analysis.Size(measuring.microbatches, measuring.microbatch_size, measuring.sketch_size, measuring.seed),
        folder=out,
        progress=progress,
    )
    records.write(out / "spectra.json", spectra)
    clear = sum(layer.signal_rank > 0 for layer in spectra.layers)
    say(
        f"spectra    {len(spectra.layers)} layers over {spectra.microbatches} microbatches, signal above noise in {clear}  "
        f"({spectra.seconds:.0f} s)"
    )
    return spectra


def _held(measuring: Measuring, base: BaseModel, out: Path) -> bool:
    file = out / MEASURED
    return file.is_file() and file.read_text(encoding="utf-8").strip() == _key(measuring, base)


def _key(measuring: Measuring, base: BaseModel) -> str:
    told = dataclasses.asdict(measuring) | {"model": base.digest, "data": source_digest(measuring.data)}
    return key_of({"measuring": told, "library": library_digest()})


def _notes(order: Order, tools: tuple[str, ...], out: Path) -> tuple[str, ...]:
    count = len(order.rows.train) + len(order.rows.eval)
    found = []
    if order.rows.other_tokens:
        found.append(
            f"{order.rows.other_tokens} of {count} rows have a token that spans the seam of prompt and answer; tools that tokenise "
            "the two apart see other tokens there than were measured"
        )
    if order.is_local:
        found.append(
            f"the files name the model by its place on this machine, {order.model}; change that line where you train"
        )
    older = [name for name in recipes.TOOLS if name not in tools and (out / name).is_dir()]
    if older:
        found.append(f"{', '.join(older)} in {out} are of an earlier call and may follow another decision")
    return tuple(found)
