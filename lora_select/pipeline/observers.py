"""Who is told of a run: a person at a terminal, and MLflow. Prefect's observer is in `tasks/`."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select.pipeline.stage import Observer, Work
from lora_select.pipeline.summaries import summary
from lora_select.progress import Display, Report, display
from lora_select.records import Dataset, Decision, Promotion, Race
from lora_select.report.answer import run_name
from lora_select.training import job

if TYPE_CHECKING:
    from lora_select.tracking.tracker import Tracker

NAME_WIDTH = 11
SHIP_SECONDS = 5.0
TRAINING = "train"
"""The stage whose load on the machine is watched."""


@final
class Terminal(Observer):
    """Prints a line for each finished stage, and a bar (or lines) while one lasts."""

    def __init__(self, say: Callable[[str], None] | None = None, shown: Display | None = None):
        self._say = say or (lambda line: print(line, flush=True))
        self._shown = shown or display()

    def said(self, line: str) -> None:
        """Print it."""
        self._say(line)

    def progress(self, work: Work) -> AbstractContextManager[Report]:
        """A bar on a terminal, lines elsewhere."""
        return self._shown(work.label)

    def finished(self, work: Work, record: Any, *, reused: bool, seconds: float) -> None:
        """The stage's name, what came out, and how long it took or `reused`."""
        for line in stage_lines(work.label, record, reused=reused, seconds=seconds):
            self._say(line)


def stage_lines(label: str, record: Any, *, reused: bool, seconds: float) -> list[str]:
    """What a person reads of a finished stage."""
    took = "reused" if reused else f"{seconds:.1f} s"
    head, *rest = summary(record).splitlines()
    return [f"{label:{NAME_WIDTH}} {head}  ({took})", *(f"{'':{NAME_WIDTH}} {line}" for line in rest)]


@final
class Tracking(Observer):
    """Logs every record to MLflow, and the steps of a training while it runs; with `machine` also the machine's load beside it."""

    def __init__(self, tracker: "Tracker", *, machine: bool = False):
        self._tracker = tracker
        self._machine = machine
        self._dataset = ""
        self._decision: Decision | None = None
        self.left = 0
        """Entries that MLflow did not take before the run ended."""

    def began(self, work: Work) -> None:
        """Open the stage's child run."""
        self._tracker.begin(work.label)

    @contextmanager
    def progress(self, work: Work) -> Iterator[Report]:
        """New training steps go to MLflow every few seconds."""
        last = time.monotonic()

        def report(_done: int, _total: int, _what: str) -> None:
            nonlocal last
            if time.monotonic() - last > SHIP_SECONDS and (work.folder / job.METRICS).is_file():
                last = time.monotonic()
                self._tracker.ship(work.folder / job.METRICS, work.label)

        with self._watched(work):
            yield report

    def _watched(self, work: Work) -> AbstractContextManager[None]:
        run_id = self._tracker.run_id(work.label)
        if not self._machine or work.stage != TRAINING or run_id is None:
            return nullcontext()
        from lora_select.tracking.system_metrics import watched

        return watched(self._tracker.store, run_id)

    def failed(self, work: Work, error: BaseException) -> None:
        """Close the child run as failed or killed."""
        self._tracker.end(work.label, "FAILED" if isinstance(error, Exception) else "KILLED")

    def finished(self, work: Work, record: Any, *, reused: bool, seconds: float) -> None:  # noqa: ARG002
        """Log the record; each training of a race is a run of its own."""
        if not reused and isinstance(record, Race):
            for probe in record.probes:
                label = f"probe-{probe.key}-{probe.learning_rate:g}-{probe.steps}"
                self._tracker.begin(label)
                self._tracker.log(label, probe)
                self._tracker.end(label)
        self._tracker.log(work.label, record, work.folder, reused=reused)
        if not reused:
            self._tracker.end(work.label)
        self._rename(record)

    def _rename(self, record: Any) -> None:
        """Runs are told apart in a list by dataset, choice and, once it is known, role."""
        if isinstance(record, Dataset):
            self._dataset = record.name
        elif isinstance(record, Decision):
            self._decision = record
            self._tracker.rename(run_name(self._dataset, record))
        elif isinstance(record, Promotion):
            self._tracker.rename(run_name(self._dataset, self._decision, record.alias))

    def ended(self, folder: Path, status: str) -> None:  # noqa: ARG002
        """Close the parent run."""
        self.left = self._tracker.finish(status)
