"""Registrations that no run will work on, by the ledger and by what Prefect's server knows of its runs."""

import os
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun, StateType

from lora_select.audit.books.ledger import POLICY, in_folder
from lora_select.audit.registrations import Registration, holders, pending, put_back
from lora_select.config import RunConfig
from lora_select.data.events import emit_registered

DEPLOYMENT = "on-dataset"
PAGE = 200
STARTING = timedelta(minutes=10)
"""A run that a worker took is pending until its process says something; one whose worker died before that stays so for ever."""


def send_lost(config: RunConfig) -> list[str]:
    """Send an event for each registration that no flow run will work on; return a line for each.

    One that waits in the line or is worked on is left alone. So is one whose run ended badly: a person is told of that. One that was
    taken by a run that died with its worker is put back into the line.

    Raises:
        WorldError: the server does not take an event.
    """
    root = Path(config.runs_dir)
    held = holders(in_folder(root))
    lines = []
    for item in lost(pending(root), held, _states()):
        put_back(root, item.sequence, by=POLICY, reason="the run that took it is gone")
        sent = emit_registered(item.path, item.digest, os.environ.get("PREFECT_API_URL"))
        lines.append(f"entry {item.sequence}: {item.path} ({item.digest[:12]}): {sent}")
        print(lines[-1], flush=True)
    if not lines:
        print("every registered dataset was trained on, is worked on or has a run that waits", flush=True)
    return lines


def lost(
    waiting: Iterable[Registration], held: Mapping[int, str], states: Mapping[str, StateType]
) -> list[Registration]:
    """Those that were taken by a run that died, and those at the line's end that have no run to come.

    Args:
        waiting: registrations that no finished run has trained on, oldest first.
        held: number of a registration -> the flow run that took it.
        states: of every flow run of the deployment, by its id.
    """
    waiting = list(waiting)
    died = [one for one in waiting if one.sequence in held and _is_gone(states.get(held[one.sequence]))]
    coming = sum(state not in TERMINAL_STATES and run not in held.values() for run, state in states.items())
    return died + [one for one in waiting if one.sequence not in held][coming:]


def _is_gone(state: StateType | None) -> bool:
    """Whether nobody will go on with a run, and nobody was told: it crashed, or the server does not know it."""
    return state in (None, StateType.CRASHED)


def state_of(run: FlowRun, now: datetime) -> StateType:
    """A run's state; one that has been starting for too long is crashed, whatever the server says."""
    found = run.state_type or StateType.PENDING
    stuck = found == StateType.PENDING and run.state is not None and now - run.state.timestamp > STARTING
    return StateType.CRASHED if stuck else found


def _states() -> dict[str, StateType]:
    """The state of every run that an event started."""
    found: dict[str, StateType] = {}
    chosen = DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT]))
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(deployment_filter=chosen, limit=PAGE, offset=len(found))
            found |= {str(run.id): state_of(run, datetime.now(UTC)) for run in page}
            if len(page) < PAGE:
                return found
