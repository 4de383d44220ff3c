"""Retention in the line: what is refused before a training, what is left out after it, and the check of what is served."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select.errors import InputError
from lora_select.pipeline import source_digests, workspace
from lora_select.pipeline.run import Run
from lora_select.pipeline.stage import Outcome
from lora_select.pipeline.stages import train
from lora_select.pipeline.workspace import StageRef
from lora_select.records import (
    Adapter,
    BaseModel,
    DatasetProfile,
    ReloadCheck,
    Retention,
    TrainingPlan,
    sha256_file,
)
from lora_select.records.retention import IN_BASE, KEPT_MOMENTS
from lora_select.training.validation import FEWEST


def replay(run: Run) -> dict[str, Any]:
    """What the plan is told of reference text among the rows of the training; nothing where there is none."""
    settings = run.config.retention
    if not settings.replay:
        return {}
    return {
        "replay": {"share": settings.replay, "references": settings.references},
        "key_only": source_digests.of(run.sources, "references"),
    }


def references(run: Run, profile: Outcome[DatasetProfile], planned: Outcome[TrainingPlan]) -> None:
    """Read the reference text, and stop before the training where it cannot be read, is too little, or holds the task's rows.

    Raises:
        InputError: names the set, or the file of earlier moments.
    """
    settings = run.config.retention
    if settings.mode == "off" or planned.record.validation_rows < FEWEST:
        return
    for file in settings.earlier:
        if not Path(file).is_file():
            raise InputError(
                f"`retention.earlier`: {file} does not exist; name a file that `retention.keep_moments` wrote"
            )
    run.do(
        train.references,
        "references",
        plan=planned.ref,
        profile=profile.ref,
        base=run.base,
        giving=settings.references,
        judging=settings.judges,
        give_tokens=settings.reference_tokens,
        judging_units=settings.judging_units,
        key_only=source_digests.of(run.sources, "references", "judges"),
    )


def retained(
    run: Run,
    profile: Outcome[DatasetProfile],
    planned: Outcome[TrainingPlan],
    adapter: Outcome[Adapter],
    rivals: Mapping[str, StageRef],
) -> Outcome[Retention] | None:
    """What of the update is taken back so that general text keeps its loss.

    None where that is off, no rows are kept to choose by, or this adapter and these rows cannot be filtered: a training is not lost by it.
    """
    settings = run.config.retention
    if settings.mode == "off":
        return None
    if planned.record.validation_rows < FEWEST:
        run.place.say(
            f"retention was left out: it chooses on rows kept from training and needs {FEWEST} of them; bring more rows or raise "
            "`training.validation`"
        )
        return None
    try:
        made = run.do(
            train.retain,
            "retention",
            adapter=adapter.ref,
            plan=planned.ref,
            profile=profile.ref,
            base=run.base,
            settings=settings,
            device=run.machine.device,
            quantize=run.config.base_model.quantize,
            rivals=rivals,
            key_only=source_digests.of(run.sources, "references", "judges", "earlier") | _of_base(run.base),
        )
    except InputError as error:
        run.place.say(f"retention was left out, the adapter is served as it was trained: {error}")
        return None
    if made.record.moments_file is not None:
        workspace.link(run.place.root, run.key, made.folder / made.record.moments_file.path, KEPT_MOMENTS)
    return made


def _of_base(base: BaseModel) -> dict[str, str]:
    """The earlier tasks' moments that came with the base, for the stage's key."""
    file = Path(base.path) / IN_BASE
    return {"earlier.base": sha256_file(file)} if file.is_file() else {}


def served(
    run: Run,
    planned: Outcome[TrainingPlan],
    adapter: Outcome[Adapter],
    proof: Outcome[ReloadCheck],
    retention: Outcome[Retention] | None,
) -> tuple[Outcome[Adapter], Outcome[ReloadCheck]]:
    """The adapter that is served, and its own reload check: what retention changed is loaded in a new process too.

    Raises:
        WorldError: the check of what retention made failed.
    """
    if retention is None or retention.record.decision.choice == "none":
        return adapter, proof
    made = run.do(train.serve, "served", adapter=adapter.ref, retention=retention.ref)
    checked = run.do(train.prove, "served-proof", adapter=made.ref, plan=planned.ref, base=run.base, precision="fp32")
    return made, checked
