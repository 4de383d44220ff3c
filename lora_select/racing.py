"""A race from the records of a run: shortlist, plan for one process, rows, probes. The flow's stage and `recommend` call it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select import records
from lora_select.data.tokens import read_rows
from lora_select.records import BaseModel, DatasetProfile, Race, SelectionInputs, Spectra
from lora_select.selection.rule import prepare_race
from lora_select.training import trials as probes
from lora_select.training.machine import Machine
from lora_select.training.planning.plan import make_plan


@final
@dataclass(frozen=True)
class Evidence:
    """What was measured, and the folders that the records' files are in."""

    profile: DatasetProfile
    spectra: Spectra
    profile_folder: Path
    spectra_folder: Path


def race(
    evidence: Evidence,
    base: BaseModel,
    inputs: SelectionInputs,
    training: Mapping[str, Any],
    machine: Machine,
    *,
    folder: Path,
    progress: Callable[[int, int, str], None] = lambda *_: None,
) -> Race:
    """Run the shortlist's short trainings in this process; what `folder` holds already is not run again.

    Args:
        evidence: records and folders.
        base: the base model.
        inputs: constraints and the budget.
        training: a run's `training` section and `seed`; probes have one process whatever it says.
        machine: this machine.
        folder: existing; gets the finished probes.
        progress: called with (done, total, what).

    Raises:
        InputError: the budget pays for no race, or there are too few rows.
    """
    shortlist = prepare_race(evidence.profile, evidence.spectra, inputs)
    rows = read_rows(evidence.profile_folder / evidence.profile.train_tokens_file.path)
    alone = {**training, "num_processes": 1, "nodes": 1, "zero_stage": 0}
    return probes.run(
        shortlist,
        make_plan(evidence.profile, shortlist.entrants[0].spec, base, machine, alone, rows),
        probes.Material(
            base.path,
            evidence.spectra_folder / evidence.spectra.tensors.path,
            rows,
            inputs.quantized_base,
            int(training["seed"]),
        ),
        folder=folder,
        digests=(records.digest(evidence.profile), records.digest(evidence.spectra)),
        budget=inputs.race_budget,
        progress=progress,
    )
