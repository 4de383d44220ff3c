"""What all stages share: key, Prefect cache, folder lock, record, tracking. A stage module adds one library call.

Two caches, one key. Prefect's says `Cached` in its pages; the folder's `record.json` is what counts, because it survives
Prefect's store and is checked against the files it names.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from filelock import FileLock
from prefect import get_run_logger, task
from prefect.cache_policies import CacheKeyFnPolicy

from lora_select import records
from lora_select.errors import InputError
from lora_select.records import BaseModel
from lora_select.records.digests import key_of, library_digest
from lora_select.tracking.tracker import Tracker
from tasks import progress, store
from tasks.progress import Reporter
from tasks.store import StageRef

R = TypeVar("R")
RETRY_DELAYS = [5.0, 30.0]


@final
@dataclass(frozen=True)
class Place:
    """Where a run works: the runs folder and what logs it to MLflow. Never part of a key."""

    root: Path
    tracker: Tracker


@final
@dataclass(frozen=True)
class Context:
    """What a stage's library call may use besides its inputs: its folder, a progress reporter, the run's place."""

    folder: Path
    report: Reporter
    place: Place
    label: str

    def load(self, ref: StageRef, kind: type[R]) -> R:
        """The record of an earlier stage."""
        return store.load(self.place.root, ref, kind)

    def folder_of(self, ref: StageRef) -> Path:
        """The folder of an earlier stage."""
        return store.stage_folder(self.place.root, ref)


@final
@dataclass(frozen=True)
class Outcome(Generic[R]):
    """A finished stage as the flow sees it."""

    ref: StageRef
    record: R
    folder: Path
    reused: bool
    seconds: float


@final
@dataclass(frozen=True)
class Stage(Generic[R]):
    """A Prefect task around one library call: `compute(context, **inputs)` returns the stage's record.

    `retries` are for the world (a server, a rank), never for the user's input.
    """

    name: str
    kind: type[R]
    compute: Callable[..., R]
    retries: int = 0

    def __call__(self, place: Place, *, label: str = "", **inputs: Any) -> Outcome[R]:
        """Run the stage, or reuse it when the same inputs were finished before by the same library.

        Args:
            place: where the run works.
            label: what MLflow calls this use of the stage, when one run uses a stage twice.
            inputs: JSON values, records, and references to earlier stages; digests stand for the last two in the key.
        """
        started = time.monotonic()
        label = label or self.name
        parts = {name: _key_part(value) for name, value in inputs.items()}
        key = key_of({"stage": self.name, "library": library_digest(), "inputs": parts})
        held = store.finished(place.root, self.name, key)
        ref = self._as_task(place, label, inputs, fresh=held is None)(key)
        record = store.load(place.root, ref, self.kind)
        folder = store.stage_folder(place.root, ref)
        if held == ref:
            place.tracker.log(label, record, folder, reused=True)
        return Outcome(ref, record, folder, held == ref, time.monotonic() - started)

    def _as_task(
        self, place: Place, label: str, inputs: Mapping[str, Any], *, fresh: bool
    ) -> Callable[[str], StageRef]:
        # A result names files below the runs folder, so the folder is in Prefect's key: another clone has its own.
        prefix = f"lora-select/{key_of({'root': str(place.root.resolve())})}/{self.name}"

        @task(
            name=self.name,
            task_run_name=f"{label}-{{key}}",
            cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _context, parameters: f"{prefix}/{parameters['key']}"),
            persist_result=True,
            result_serializer="json",
            refresh_cache=fresh,
            retries=self.retries,
            retry_delay_seconds=RETRY_DELAYS[: self.retries],
            retry_condition_fn=_is_passing,
        )
        def work(key: str) -> StageRef:
            return _run(self, place, label, key, inputs)

        return work


def _key_part(value: Any) -> Any:
    """What of an input counts: digests, never places. The same work in another folder keeps its key."""
    if isinstance(value, StageRef | BaseModel):
        return value.digest
    if isinstance(value, Mapping):
        return {name: _key_part(item) for name, item in value.items()}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _is_passing(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether another try may help. A plain function: Prefect never retries on a callable of any other kind."""
    try:
        state.result()
    except InputError:
        return False
    except Exception:
        return True
    return False


def _run(stage: Stage[Any], place: Place, label: str, key: str, inputs: Mapping[str, Any]) -> StageRef:
    folder = store.folder_of(place.root, stage.name, key)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        held = store.finished(place.root, stage.name, key)
        if held is not None:
            return held
        get_run_logger().info("%s: working in %s", label, folder)
        place.tracker.begin(label)
        try:
            with progress.reporter(label, key) as report:
                record = stage.compute(Context(folder, report, place, label), **inputs)
            records.write(folder / store.RECORD_FILE, record)
        except BaseException as error:
            place.tracker.end(label, "FAILED" if isinstance(error, Exception) else "KILLED")
            raise
    ref = store.finished(place.root, stage.name, key)
    if ref is None:
        raise RuntimeError(f"stage {stage.name} wrote a record that names files which are not in {folder}")
    place.tracker.log(label, record, folder)
    place.tracker.end(label)
    return ref
