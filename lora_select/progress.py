"""How far a long step is: one function `(done, total, what)`, and where a person sees it: a bar, lines, or nowhere."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

Report = Callable[[int, int, str], None]
"""Called with (done, total, what) as often as one likes; what shows it does so sparingly."""
Display = Callable[[str], AbstractContextManager[Report]]
"""Shows the progress of one named step for as long as the context lasts."""

LINE_SECONDS = 15.0
WIDTH = 32


def silent(done: int, total: int, what: str) -> None:
    """Show nothing."""


@contextlib.contextmanager
def silence(name: str) -> Iterator[Report]:  # noqa: ARG001
    """A step of which nothing is shown."""
    yield silent


@contextlib.contextmanager
def bar(name: str) -> Iterator[Report]:
    """A bar on the terminal, which goes when the step is done."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("  {task.description:9}"),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[message]}"),
    )
    with Progress(*columns, transient=True) as shown:
        task = shown.add_task(name, total=None, message="")
        yield lambda done, total, what: shown.update(task, completed=done, total=total, message=what[:WIDTH])


@contextlib.contextmanager
def lines(name: str) -> Iterator[Report]:
    """A line every 15 seconds, for logs and pipes."""
    last, shown = time.monotonic(), ""

    def report(done: int, total: int, what: str) -> None:
        nonlocal last, shown
        line = f"  {name}: {done}/{total} {what}"
        if time.monotonic() - last >= LINE_SECONDS and line != shown:
            last, shown = time.monotonic(), line
            print(line, flush=True)

    yield report


def display() -> Display:
    """A bar where there is a terminal, else lines."""
    return bar if sys.stdout.isatty() else lines
