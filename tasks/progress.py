"""Progress of a long stage, seen in two places: a bar on the terminal and a progress artifact in Prefect."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

Reporter = Callable[[int, int, str], None]
ARTIFACT_SECONDS = 5.0
LINE_SECONDS = 15.0


@contextmanager
def reporter(stage: str, key: str) -> Iterator[Reporter]:
    """Yield a function `(done, total, message)` to call as often as one likes; both places are updated sparingly."""
    artifact = _Artifact(stage, key)
    if sys.stdout.isatty():
        columns = (
            TextColumn("  {task.description:9}"),
            BarColumn(bar_width=28),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[message]}"),
        )
        with Progress(*columns, transient=True) as bar:
            task = bar.add_task(stage, total=None, message="")

            def on_terminal(done: int, total: int, message: str) -> None:
                bar.update(task, completed=done, total=total, message=message)
                artifact.update(done, total)

            yield on_terminal
    else:
        last, shown = time.monotonic(), ""

        def on_lines(done: int, total: int, message: str) -> None:
            nonlocal last, shown
            line = f"  {stage}: {done}/{total} {message}"
            if time.monotonic() - last >= LINE_SECONDS and line != shown:
                last, shown = time.monotonic(), line
                print(line, flush=True)
            artifact.update(done, total)

        yield on_lines
    artifact.finish()


class _Artifact:
    """A Prefect progress artifact that appears only when a stage takes longer than a few seconds."""

    def __init__(self, stage: str, key: str) -> None:
        self._stage = stage
        self._name = f"{stage}-progress-{key[:8]}".replace("_", "-").lower()
        self._last = time.monotonic()
        self._id: Any = None

    def update(self, done: int, total: int) -> None:
        if time.monotonic() - self._last < ARTIFACT_SECONDS or total <= 0:
            return
        self._last = time.monotonic()
        self._send(100.0 * min(done, total) / total)

    def finish(self) -> None:
        if self._id is not None:
            self._send(100.0)

    def _send(self, percent: float) -> None:
        # The orchestrator may be away for a while; the work it watches must go on.
        try:
            if self._id is None:
                self._id = create_progress_artifact(percent, key=self._name, description=self._stage)
            else:
                update_progress_artifact(self._id, progress=percent)
        except Exception as error:
            from prefect import get_run_logger

            get_run_logger().warning("progress artifact not sent: %s", error)
