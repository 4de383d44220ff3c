"""What a retraining says first: how its rows differ from those that the present champion was trained on."""

from lora_select.audit import runs
from lora_select.audit.champion import run_to_beat
from lora_select.pipeline.stage import Context, Place, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import Dataset, VersionChange


def earlier_dataset(place: Place, run: str, model: str | None) -> StageRef | None:
    """The dataset of the champion that a run is to beat; None where there is none, or it is not in this folder as it was."""
    if model is None or place.tracker is None:
        return None
    before = run_to_beat(place.tracker.store, place.root, run, model)
    if not before:
        return None
    found = runs.stages(place.root / before).get("dataset")
    if found is None or runs.stage_faults(found):
        place.say(
            f"the rows of the champion (run {before}) are not here as they were; these are not compared with them"
        )
        return None
    return StageRef(found.folder.parent.name, found.folder.name, found.record)


def _compare(context: Context, *, dataset: StageRef, earlier: StageRef) -> VersionChange:
    from lora_select.data.gate.versions import compare

    new, old = ((context.load(ref, Dataset), context.folder_of(ref)) for ref in (dataset, earlier))
    return compare(*new, *old, context.folder)


compare = Stage("change", VersionChange, _compare)
