"""What a person reads while a flow runs. Every line also goes to the flow run's log in Prefect."""

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

from tasks.stage import Outcome

WIDTH = 10


def say(line: str = "") -> None:
    """Print a line and log it."""
    print(line, flush=True)
    if not line.strip():
        return
    try:
        get_run_logger().info("%s", line.strip())
    except MissingContextError:
        pass


def done(name: str, outcome: Outcome, summary: str) -> None:
    """One line for a finished stage: name, what came out, time or `reused`."""
    took = "reused" if outcome.reused else f"{outcome.seconds:.1f} s"
    head, *rest = summary.splitlines()
    say(f"{name:{WIDTH}} {head:<96} {took:>8}")
    for line in rest:
        say(f"{'':{WIDTH}} {line}")
