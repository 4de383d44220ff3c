"""Which registrations the sweep sends again: by who took them, and by what Prefect knows of those."""

from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.states import State

from lora_select.audit.registrations import Registration
from tasks.lost_events import lost, state_of

LINE = [Registration(f"/data/{name}", name * 64, number) for number, name in enumerate("abcd", start=1)]


def sent(held, **states):
    return [one.path[-1] for one in lost(LINE, held, {name: StateType[state] for name, state in states.items()})]


def test_one_that_a_dead_run_took_is_lost_and_one_of_a_failed_run_is_a_persons():
    held = {1: "crashed", 2: "failed", 3: "running", 4: "unknown to the server"}
    assert sent(held, crashed="CRASHED", failed="FAILED", running="RUNNING") == ["a", "d"]


def test_a_run_that_waits_will_take_the_oldest_of_those_that_nobody_took():
    assert sent({}) == ["a", "b", "c", "d"]
    assert sent({}, one="SCHEDULED", two="PENDING", over="COMPLETED") == ["c", "d"]
    assert sent({1: "one"}, one="RUNNING", two="PAUSED") == ["c", "d"]
    assert sent({}, one="SCHEDULED", two="SCHEDULED", three="SCHEDULED", four="SCHEDULED", five="SCHEDULED") == []


@pytest.mark.parametrize(
    ("type_", "minutes", "counts_as"),
    [
        ("PENDING", 2, "PENDING"),
        ("PENDING", 11, "CRASHED"),
        ("SCHEDULED", 600, "SCHEDULED"),
        ("RUNNING", 600, "RUNNING"),
    ],
)
def test_a_run_whose_worker_died_before_its_process_said_anything_is_gone(type_, minutes, counts_as):
    """Nobody calls such a run crashed: it never sent a heartbeat, so its silence is not noticed either."""
    now = datetime(2026, 11, 30, 12, tzinfo=UTC)
    state = State(type=StateType[type_], timestamp=now - timedelta(minutes=minutes))
    run = FlowRun(flow_id=uuid4(), state=state, state_type=StateType[type_])
    assert state_of(run, now) == StateType[counts_as]
    assert sent({}, one=state_of(run, now).name) == (
        ["a", "b", "c", "d"] if counts_as == "CRASHED" else ["b", "c", "d"]
    )
