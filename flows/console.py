"""What a person reads while a flow runs. Every line also goes to the flow run's log in Prefect."""

import contextlib

from prefect import get_run_logger
from prefect.exceptions import MissingContextError

WIDTH = 11


def say(line: str = "") -> None:
    """Print a line and log it."""
    print(line, flush=True)
    if not line.strip():
        return
    with contextlib.suppress(MissingContextError):
        get_run_logger().info("%s", line.strip())


def done(name: str, reused: bool, seconds: float, lines: str) -> None:
    """A finished stage: its name, what came out, and how long it took or `reused`."""
    took = "reused" if reused else f"{seconds:.1f} s"
    head, *rest = lines.splitlines()
    say(f"{name:{WIDTH}} {head}  ({took})")
    for line in rest:
        say(f"{'':{WIDTH}} {line}")
