"""What Prefect calls the end of a run: the state's name is the answer, which lists show and automations listen to."""

from prefect import State
from prefect.states import Completed

from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import DEFERRED
from lora_select.pipeline.outcomes import Finetuned
from lora_select.pipeline.run import Run
from lora_select.tracking import names

UNCHANGED = "Unchanged"
STATES = {
    names.CHAMPION: "Promoted",
    names.CHALLENGER: "Blocked",
    standing.AWAITING: "AwaitingApproval",
    standing.REJECTED: "Rejected",
    DEFERRED: "Deferred",
}
"""What came of a promotion -> the name of the flow run's last state."""


def ended(run: Run, done: Finetuned) -> State[str]:
    """The last state of a run whose data is the run's folder: `Unchanged` where nothing was left to do."""
    promotion = done.promotion.record if done.promotion else None
    if done.report.reused:
        return unchanged(str(run.folder))
    if promotion is None:
        return Completed(data=str(run.folder))
    message = f"{promotion.model_name}: {'; '.join(promotion.reasons)}"
    return Completed(name=STATES[promotion.alias], message=message, data=str(run.folder))


def unchanged(folder: str) -> State[str]:
    """The last state where a finished run is what would be made again."""
    message = f"dataset, base model, config and library are unchanged since {folder}; nothing to do"
    return Completed(name=UNCHANGED, message=message, data=folder)
