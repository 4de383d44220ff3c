"""Which registrations the sweep sends again: by who took them, and by what Prefect knows of those."""

from prefect.client.schemas.objects import StateType

from lora_select.audit.registrations import Registration
from tasks.lost_events import lost

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
