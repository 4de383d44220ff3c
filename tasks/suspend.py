"""A person's word through Prefect's pages: the run is suspended, holds no worker, and goes on when somebody answers.

Only where a server and a deployment are: elsewhere the run ends as `awaiting approval` and `lora-select approve` finishes it.
"""

from itertools import count
from pathlib import Path
from typing import Literal

from prefect.context import FlowRunContext
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import ValidationError

from lora_select.audit.alias import approval, standing
from lora_select.audit.alias.approval import Answer
from lora_select.audit.alias.promotion import Office
from lora_select.audit.alias.standing import Standing
from lora_select.audit.books.ledger import in_folder
from lora_select.config import RunConfig
from lora_select.errors import InputError, WorldError
from lora_select.pipeline.run import folder_of
from lora_select.tracking import store


class Decision(RunInput):
    """What the form asks: approve or reject, who says so, why, and whether criteria that are not met are overridden."""

    decision: Literal["approve", "reject"]
    by: str
    reason: str
    override: bool = False


def asked_before() -> bool:
    """Whether this flow run was suspended for an answer, so that there may be one to enter. Prefect does not count a resumed run anew."""
    context = FlowRunContext.get()
    return bool(context and context.flow_run and context.flow_run.empirical_policy.pause_keys)


def ask(config: RunConfig) -> None:
    """Where the config's run awaits approval, wait for a person's answer and enter it; call it from a flow with no run open.

    An answer that cannot be taken (no name, no reason, a criterion that is not met and no override, MLflow away) asks again and says
    why; it never fails the run. A flow run that is resumed begins at its top, comes here again and finds what was answered. Where
    there is no deployment nothing can be resumed, and this returns at once.
    """
    if not deployment.id or config.tracking.uri is None or config.promotion.approval != "required":
        return
    run, refusal = folder_of(config), ""
    ledger = in_folder(run.parent)
    for number in count():
        stands = standing.of_run(ledger.entries(), run.name, now=ledger.clock())
        if stands is None or stands.state != standing.AWAITING:
            return
        form = Decision.with_initial_data(description=f"{refusal}\n\n{_question(run, stands)}".strip())
        try:
            # The request's own number is in the key: what was said of one request is no answer to the next.
            said = suspend_flow_run(form, timeout=None, key=f"approval-{run.name}-{stands.last.sequence}-{number}")
            office = Office(ledger, store.prepare(config.tracking.uri, config.tracking.experiment))
            answer = Answer(said.by, said.reason, said.override)
            (approval.approve if said.decision == "approve" else approval.reject)(office, run, answer)
        except (InputError, WorldError, ValidationError) as error:
            refusal = f"**The answer was not taken:** {error}"


def _question(run: Path, stands: Standing) -> str:
    reasons = "\n".join(f"- {reason}" for reason in stands.decision.details["reasons"])
    version, until = stands.last.details["version"], stands.last.details["until"]
    return (
        f"Shall version {version} of {stands.decision.model} be champion? Until {until}.\n\n{reasons}\n\n"
        f"The report is {run / 'report.html'}."
    )
