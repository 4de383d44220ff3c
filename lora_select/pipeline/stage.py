"""What all stages share: key, folder lock, record, runner, observers. A stage is a name, a record type and a function.

A runner calls the work of a stage: in place (:func:`plainly`), or as a Prefect task (`tasks/`). Observers are told what happens and
change nothing. Neither is part of a key, so work that one runner finished is taken up by another.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from filelock import FileLock
from pydantic import BaseModel as Section

from lora_select.pipeline import workspace
from lora_select.pipeline.workspace import StageRef
from lora_select.progress import Report, silence
from lora_select.records import BaseModel
from lora_select.records.digests import key_of, library_digest

if TYPE_CHECKING:
    from lora_select.tracking.tracker import Tracker

R = TypeVar("R")


@final
@dataclass(frozen=True)
class Work:
    """One use of a stage, for its runner and for observers.

    `label` names this use in the run's folder and in MLflow, where one run uses a stage twice. `fresh` is whether nothing finished was
    found under `key`. `retries` are for the world (a server, a rank), never for the user's input.
    """

    stage: str
    label: str
    key: str
    root: Path
    fresh: bool
    retries: int
    call: Callable[[], StageRef]

    @property
    def folder(self) -> Path:
        """Where the stage works and leaves its record."""
        return workspace.folder_of(self.root, self.stage, self.key)


@final
@dataclass(frozen=True)
class Outcome(Generic[R]):
    """A finished stage."""

    ref: StageRef
    record: R
    folder: Path
    reused: bool
    seconds: float


Runner = Callable[[Work], StageRef]
"""Does a piece of work and returns its reference: it calls `work.call()`, which is safe to call again."""


def plainly(work: Work) -> StageRef:
    """The runner that needs no orchestrator."""
    return work.call()


class Observer:
    """Hears what a run does. Every method may be left as it is; none may raise for what it cannot tell."""

    def said(self, line: str) -> None:
        """A line for a person."""

    def began(self, work: Work) -> None:
        """The work itself begins; a stage that is taken up never does."""

    def progress(self, work: Work) -> AbstractContextManager[Report]:
        """Where the work's progress goes while it lasts."""
        return silence(work.label)

    def failed(self, work: Work, error: BaseException) -> None:
        """The work ended without a record."""

    def finished(self, work: Work, record: Any, *, reused: bool, seconds: float) -> None:
        """The stage has a record: made now, or taken up."""

    def ended(self, folder: Path, status: str) -> None:
        """The run is over: FINISHED, FAILED or KILLED."""


@final
@dataclass(frozen=True)
class Place:
    """Where a run works, who runs its stages and who is told. Never part of a key.

    `tracker` is None where a run is not tracked; evaluation and promotion ask it for the registry.
    """

    root: Path
    tracker: "Tracker | None" = None
    observers: tuple[Observer, ...] = ()
    runner: Runner = plainly

    def say(self, line: str = "") -> None:
        """A line for a person."""
        for observer in self.observers:
            observer.said(line)


@final
@dataclass(frozen=True)
class Context:
    """What a stage's function may use besides its inputs: its folder, a progress report, the run's place."""

    folder: Path
    report: Report
    place: Place
    label: str

    def load(self, ref: StageRef, kind: type[R]) -> R:
        """The record of an earlier stage, as it was when the stage ended."""
        return workspace.load(self.place.root, ref, kind)

    def folder_of(self, ref: StageRef) -> Path:
        """The folder of an earlier stage, every file of it as it was when the stage ended."""
        return workspace.intact(self.place.root, ref)


@final
@dataclass(frozen=True)
class Stage(Generic[R]):
    """One step of the line: `compute(context, **inputs)` returns its record."""

    name: str
    kind: type[R]
    compute: Callable[..., R]
    retries: int = 0

    def __call__(
        self, place: Place, *, label: str = "", key_only: Mapping[str, Any] | None = None, **inputs: Any
    ) -> Outcome[R]:
        """Run the stage, or take it up when the same inputs were finished before by the same library.

        Args:
            place: where the run works.
            label: what this use of the stage is called, when one run uses a stage twice.
            key_only: what else makes it other work, though the function is not told: bytes behind a path, who is champion now.
            inputs: JSON values, records, sections of the config, and references to earlier stages; digests stand for the last in the key.
        """
        started = time.monotonic()
        parts = {name: _key_part(value) for name, value in {**inputs, "key_only": key_only or {}}.items()}
        key = key_of({"stage": self.name, "library": library_digest(), "inputs": parts})
        made: list[Any] = []

        def call() -> StageRef:
            return _run(self, place, work, inputs, made)

        fresh = workspace.finished(place.root, self.name, key) is None
        work = Work(self.name, label or self.name, key, place.root, fresh, self.retries, call)
        ref = place.runner(work)
        record = made[-1] if made else workspace.load(place.root, ref, self.kind)
        seconds = time.monotonic() - started
        for observer in place.observers:
            observer.finished(work, record, reused=not made, seconds=seconds)
        return Outcome(ref, record, workspace.stage_folder(place.root, ref), not made, seconds)


def _key_part(value: Any) -> Any:
    """What of an input counts: digests, never places. The same work in another folder keeps its key."""
    if isinstance(value, StageRef | BaseModel):
        return value.digest
    if isinstance(value, Section):
        return value.model_dump()
    if isinstance(value, Mapping):
        return {name: _key_part(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _run(stage: Stage[Any], place: Place, work: Work, inputs: Mapping[str, Any], made: list[Any]) -> StageRef:
    folder = work.folder
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        held = workspace.finished(place.root, stage.name, work.key)
        if held is not None:
            return held
        _refuse_changed(place, work)
        folder.mkdir(parents=True, exist_ok=True)
        for observer in place.observers:
            observer.began(work)
        try:
            with ExitStack() as shown:
                reports = [shown.enter_context(observer.progress(work)) for observer in place.observers]
                record = stage.compute(Context(folder, _together(reports), place, work.label), **inputs)
            workspace.write(folder, record)
        except BaseException as error:
            for observer in place.observers:
                observer.failed(work, error)
            raise
    ref = workspace.finished(place.root, stage.name, work.key)
    if ref is None:
        raise RuntimeError(f"stage {stage.name}: a file in {folder} changed while the stage ended")
    made.append(record)
    return ref


def _together(reports: list[Report]) -> Report:
    def report(done: int, total: int, what: str) -> None:
        for one in reports:
            one(done, total, what)

    return report


def _refuse_changed(place: Place, work: Work) -> None:
    """Name what was changed since the stage ended and set it aside, so that the stage is made anew."""
    found = workspace.changes(work.root, work.stage, work.key)
    if found:
        kept = workspace.set_aside(work.root, work.stage, work.key)
        for fault in found:
            place.say(
                f"{work.label}: {fault}; it is not used, the stage is made anew (what was found is kept in {kept})"
            )
