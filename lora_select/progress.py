"""The bar that long commands show on a terminal; it goes when they are done."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 32


@contextlib.contextmanager
def shown() -> "Iterator[tuple[Callable[[int, int, str], None], Console]]":
    """What to call with (done, total, what), and the console on which lines may be printed above the bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn(f"{{task.description:{WIDTH}}}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, transient=True) as bar:
        task = bar.add_task("reading", total=None)

        def report(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=what[:WIDTH])

        yield report, bar.console
