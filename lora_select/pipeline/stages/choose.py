"""What is chosen: the race, where the budget pays for one, and the decision, which is pure."""

from collections.abc import Mapping
from typing import Any

from lora_select import records
from lora_select.data.labels.tokens import read_rows
from lora_select.pipeline.stage import Context, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import BaseModel, Constraints, DatasetProfile, Decision, Race, Spectra
from lora_select.selection import rule
from lora_select.training.machine import Machine
from lora_select.training.planning.plan import make_plan


def _race(
    context: Context,
    *,
    profile: StageRef,
    spectra: StageRef,
    base: BaseModel,
    constraints: Constraints,
    training: Mapping[str, Any],
    machine: Machine,
) -> Race:
    """Short trainings of the shortlist in this process; what the folder holds already is not run again."""
    from lora_select.training import trials

    measured, signal = context.load(profile, DatasetProfile), context.load(spectra, Spectra)
    shortlist = rule.prepare_race(measured, signal, constraints)
    rows = read_rows(context.folder_of(profile) / measured.train_tokens_file.path)
    alone = {**training, "num_processes": 1, "nodes": 1, "zero_stage": 0}
    return trials.run(
        shortlist,
        make_plan(measured, shortlist.entrants[0].spec, base, machine, alone, rows),
        trials.Material(
            base.path,
            context.folder_of(spectra) / signal.tensors.path,
            rows,
            constraints.quantized_base,
            int(training["seed"]),
        ),
        folder=context.folder,
        digests=(records.digest(measured), records.digest(signal)),
        budget=constraints.race_budget,
        progress=context.report,
    )


def _select(
    context: Context, *, profile: StageRef, spectra: StageRef, constraints: Constraints, race: StageRef | None
) -> Decision:
    raced = context.load(race, Race) if race else None
    return rule.select(context.load(profile, DatasetProfile), context.load(spectra, Spectra), constraints, raced)


race = Stage("race", Race, _race)
select = Stage("select", Decision, _select)
