"""What Prefect calls the end of a run: the state's name is the answer, which lists show and automations listen to."""

from prefect import State
from prefect.events import emit_event
from prefect.states import Completed

from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import DEFERRED
from lora_select.pipeline.outcomes import Finetuned
from lora_select.pipeline.run import Run
from lora_select.records import Promotion
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
    _tell(run, done, promotion)
    message = f"{promotion.model_name}: {'; '.join(promotion.reasons)}"
    return Completed(name=STATES[promotion.alias], message=message, data=str(run.folder))


def _tell(run: Run, done: Finetuned, promotion: Promotion) -> None:
    """Events that other automations may listen to: of the adapter, and of the registered model whose champion may have moved."""
    told = {
        "version": promotion.version,
        "alias": promotion.alias,
        "run": str(run.folder),
        "model": promotion.model_name,
    }
    adapter = {"prefect.resource.id": f"adapter.{done.served.record.digest[:32]}"}
    model = {"prefect.resource.id": f"model.{promotion.model_name}", "prefect.resource.name": promotion.model_name}
    related = [{**adapter, "prefect.resource.role": "adapter"}]
    emit_event("adapter.judged", adapter, payload=told)
    moved = promotion.alias == names.CHAMPION
    emit_event(
        "champion.moved" if moved else "champion.stays",
        model,
        related=related,
        payload=told | {"before": promotion.previous_champion},
    )


def unchanged(folder: str) -> State[str]:
    """The last state where a finished run is what would be made again."""
    message = f"dataset, base model, config and library are unchanged since {folder}; nothing to do"
    return Completed(name=UNCHANGED, message=message, data=folder)
