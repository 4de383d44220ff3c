"""A person's word through Prefect's pages: the run is suspended, holds no worker, and goes on when somebody answers.

Only where a server and a deployment are: elsewhere the run ends as `awaiting approval` and `lora-select approve` finishes it.
"""

from itertools import count
from pathlib import Path
from typing import Literal

from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import deployment
from pydantic import ValidationError

from lora_select.audit import approval, standing
from lora_select.audit.approval import Answer
from lora_select.audit.promotion import Office
from lora_select.errors import InputError


class Decision(RunInput):
    """What the form asks: approve or reject, who says so, why, and whether criteria that are not met are overridden."""

    decision: Literal["approve", "reject"]
    by: str
    reason: str
    override: bool = False


def ask(office: Office, run: Path, question: str) -> str:
    """Wait for a person's answer to a run that awaits approval, and enter it; call it from a flow, never from a task.

    An answer that cannot be taken (no name, no reason, a criterion that is not met and no override) asks again and says why; it never
    fails the run. A run that is resumed comes here again from its top and finds what was answered.

    Args:
        office: the ledger and the registry.
        run: the run's folder, sealed.
        question: what the person is shown.

    Returns:
        Where the run stands: `awaiting approval` at once where there is no deployment, else `promoted` or `rejected`.

    Raises:
        WorldError: a file of the run was changed, MLflow does not answer, or the ledger cannot be written.
    """
    refusal = ""
    for number in count():
        stands = standing.of_run(office.ledger.entries(), run.name, now=office.ledger.clock())
        if stands is None or stands.state not in (standing.AWAITING, "approved") or not deployment.id:
            return stands.state if stands else ""
        form = Decision.with_initial_data(description=f"{refusal}\n\n{question}".strip())
        try:
            said = suspend_flow_run(wait_for_input=form, timeout=None, key=f"approval-{run.name}-{number}")
            answer = Answer(said.by, said.reason, said.override)
            (approval.approve if said.decision == "approve" else approval.reject)(office, run, answer)
        except (InputError, ValidationError) as error:
            refusal = f"**The answer was not taken:** {error}"
    raise AssertionError  # count() has no end
