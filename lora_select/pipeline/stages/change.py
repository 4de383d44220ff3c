"""What a retraining says first: how its rows differ from those that the present champion was trained on."""

from pathlib import Path

from lora_select.audit import run_entries
from lora_select.audit.alias import standing
from lora_select.audit.books.ledger import in_folder
from lora_select.errors import WorldError
from lora_select.pipeline.stage import Context, Place, Stage
from lora_select.pipeline.workspace import StageRef
from lora_select.records import Dataset, VersionChange
from lora_select.tracking import registry
from lora_select.tracking.store import Store


def earlier_dataset(place: Place, run: str, model: str | None) -> StageRef | None:
    """The dataset of the champion that a run is to beat; None where there is none, or it is not in this folder as it was."""
    if model is None or place.tracker is None:
        return None
    before = run_to_beat(place.tracker.store, place.root, run, model)
    if not before:
        return None
    found = run_entries.stages(place.root / before).get("dataset")
    if found is None or run_entries.stage_faults(found):
        place.say(
            f"the rows of the champion (run {before}) are not here as they were; these are not compared with them"
        )
        return None
    return StageRef(found.folder.parent.name, found.folder.name, found.record)


def run_to_beat(store: Store, runs_folder: Path, run: str, model: str) -> str:
    """Key of the run whose adapter is the champion; of a run that is champion itself by now, of the one it was judged against.

    "" where there is none, its run is not in the ledger, or MLflow is away.
    """
    entries = in_folder(runs_folder).entries()
    trained = {
        str(entry.details["version"]): entry.run
        for entry in entries
        if entry.model == model and entry.kind in (standing.REGISTERED, standing.PROMOTED)
    }
    try:
        found = registry.by_alias(store, model)
    except WorldError:
        return ""
    version = found.version if found else ""
    if trained.get(version) == run:
        judged = standing.of_run(entries, run)
        version = (judged.decision.details["champion"] or "") if judged else ""
    return trained.get(version, "")


def _compare(context: Context, *, dataset: StageRef, earlier: StageRef) -> VersionChange:
    from lora_select.data.versions import compare

    new, old = ((context.load(ref, Dataset), context.folder_of(ref)) for ref in (dataset, earlier))
    return compare(*new, *old, context.folder)


compare = Stage("change", VersionChange, _compare)
