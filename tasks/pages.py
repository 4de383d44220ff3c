"""What Prefect's pages show of a run: its lines, the progress of a long stage, and when it is done the answer."""

import contextlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from prefect import get_run_logger
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.exceptions import MissingContextError

from lora_select import records
from lora_select.evidence.cost import words
from lora_select.pipeline.observers import stage_lines
from lora_select.pipeline.stage import Observer, Work
from lora_select.progress import Report
from lora_select.records import Cost, Dataset, Decision, Evaluation, Promotion
from lora_select.report import answer
from lora_select.report.frames import candidates
from lora_select.selection.explanation import explain
from lora_select.tracking import comparison
from lora_select.tracking.store import web_address
from lora_select.tracking.tracker import read_notes

ARTIFACT_SECONDS = 5.0


@final
class Log(Observer):
    """Every line that a person reads also goes to the flow run's log."""

    def said(self, line: str) -> None:
        """Log it."""
        if line.strip():
            with contextlib.suppress(MissingContextError):
                get_run_logger().info("%s", line.strip())

    def began(self, work: Work) -> None:
        """Say where the stage works."""
        with contextlib.suppress(MissingContextError):
            get_run_logger().info("%s: working in %s", work.label, work.folder)

    def finished(self, work: Work, record: Any, *, reused: bool, seconds: float) -> None:
        """Log what came out."""
        for line in stage_lines(work.label, record, reused=reused, seconds=seconds):
            self.said(line)


@final
class Pages(Observer):
    """Artifacts: a progress bar where a stage takes longer than a few seconds, and the decision of a finished run."""

    @contextmanager
    def progress(self, work: Work) -> Iterator[Report]:
        """A progress artifact, updated sparingly."""
        artifact = _Progress(work)
        yield artifact.update
        artifact.finish()

    def ended(self, folder: Path, status: str) -> None:
        """The answer first; then the decision in words, every candidate, and links to MLflow and to the report."""
        if status != "FINISHED" or not (folder / "report.html").exists():
            return
        decision = records.read(Decision, folder / "decision.json")
        link = _mlflow_page(folder)
        try:
            create_markdown_artifact(the_answer(folder), key="answer", description="the answer")
            create_markdown_artifact(explain(decision), key="decision", description="the decision, in words")
            create_table_artifact(candidates(decision), key="candidates", description="every candidate")
            if link:
                create_link_artifact(link, link_text="MLflow run", key="mlflow-run", description="parent run in MLflow")
            create_link_artifact((folder / "report.html").resolve().as_uri(), link_text="report", key="report")
        except Exception as error:  # the orchestrator may be away; the run's files are complete without it
            get_run_logger().warning("Prefect artifacts were not created: %s", error)


def the_answer(folder: Path) -> str:
    """What came of a finished run, Markdown: the same words as on its page in MLflow."""
    promotion, cost = folder / "promotion.json", folder / "evidence" / "cost.json"
    return answer.description(
        records.read(Dataset, folder / "dataset.json"),
        records.read(Decision, folder / "decision.json"),
        records.read(Evaluation, folder / "evaluation.json"),
        records.read(Promotion, promotion) if promotion.is_file() else None,
        words(records.read(Cost, cost)),
    )


class _Progress:
    """A Prefect progress artifact that appears only when a stage takes longer than a few seconds."""

    def __init__(self, work: Work) -> None:
        self._label = work.label
        self._name = f"{work.label}-progress-{work.key[:8]}".replace("_", "-").lower()
        self._last = time.monotonic()
        self._id: Any = None

    def update(self, done: int, total: int, _what: str) -> None:
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
                self._id = create_progress_artifact(percent, key=self._name, description=self._label)
            else:
                update_progress_artifact(self._id, progress=percent)
        except Exception as error:
            get_run_logger().warning("progress artifact not sent: %s", error)


def _mlflow_page(folder: Path) -> str | None:
    notes = read_notes(folder)
    if not notes:
        return None
    return comparison.run_link(web_address(notes["uri"]), notes["experiment_id"], notes["parent_run_id"])
