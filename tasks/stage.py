"""What all stages share: key, Prefect cache, folder lock, record, tracking. A stage module adds one library call.

Two caches, one key. Prefect's says `Cached` in its UI; the folder's `record.json` is what counts, because it survives
Prefect's store and is checked against the files it names.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar, final

from filelock import FileLock
from prefect import Task, get_run_logger, task
from prefect.cache_policies import CacheKeyFnPolicy
from prefect.context import TaskRunContext

from lora_select import records
from lora_select.errors import InputError
from lora_select.fingerprint import key_of, library_digest
from lora_select.records import BaseModel
from tasks import progress, store
from tasks.store import StageRef

R = TypeVar("R")
RETRY_DELAYS = [5, 30]


@final
@dataclass(frozen=True)
class Place:
    """Where a run works: the runs folder, the run's key, and the MLflow parent run. Never part of a cache key.

    `run_key` and `tracking` are empty for the stages that come before the run has a name.
    """

    root: str
    run_key: str = ""
    tracking_uri: str = ""
    experiment_id: str = ""
    parent_run_id: str = ""


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
    """A Prefect task around one library call: `compute(folder, report, **inputs)` returns the stage's record."""

    name: str
    kind: type[R]
    compute: Callable[..., R]
    retries: int = 0

    def __call__(self, place: Place, **inputs: Any) -> Outcome[R]:
        """Run the stage, or reuse it when the same inputs were finished before by the same library."""
        started = time.monotonic()
        parts = {name: _key_part(value) for name, value in inputs.items()}
        key = key_of({"stage": self.name, "library": library_digest(), "inputs": parts})
        held = store.finished(place.root, self.name, key)
        stage_task = _as_task(self, refresh=held is None)
        ref = stage_task(place, key, inputs)
        record = store.load(place.root, ref, self.kind)
        folder = store.stage_folder(place.root, ref)
        return Outcome(ref, record, folder, held == ref, time.monotonic() - started)


def _key_part(value: Any) -> Any:
    """What of an input counts: digests, never places. The same work in another folder keeps its key."""
    if isinstance(value, StageRef | BaseModel):
        return value.digest
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value


def _as_task(stage: Stage[Any], *, refresh: bool) -> Task[..., StageRef]:
    # Retries are for the world (a disk, a port, a server), never for the user's input.
    return task(
        functools.partial(_run, stage),
        name=stage.name,
        task_run_name=f"{stage.name}-{{key}}",
        cache_policy=CacheKeyFnPolicy(cache_key_fn=_cache_key),
        persist_result=True,
        result_serializer="json",
        refresh_cache=refresh,
        retries=stage.retries,
        retry_delay_seconds=RETRY_DELAYS[: stage.retries],
        retry_condition_fn=_is_passing,
    )


def _cache_key(context: TaskRunContext, parameters: Mapping[str, Any]) -> str:
    """`<runs folder>/<stage>/<key>`: the key already holds the inputs and the library's digest.

    The runs folder is in it because a result names files below that folder.
    """
    root = key_of({"root": str(Path(parameters["place"].root).resolve())})
    return f"lora-select/{root}/{context.task.name}/{parameters['key']}"


def _is_passing(_task: Any, _run_: Any, state: Any) -> bool:
    try:
        state.result()
    except InputError:
        return False
    except Exception:
        return True
    return False


def _run(stage: Stage[Any], place: Place, key: str, inputs: Mapping[str, Any]) -> StageRef:
    folder = store.folder_of(place.root, stage.name, key)
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_suffix(".lock")):
        held = store.finished(place.root, stage.name, key)
        if held is not None:
            return held
        get_run_logger().info("%s: working in %s", stage.name, folder)
        with progress.reporter(stage.name, key) as report:
            record = stage.compute(folder, report, **inputs)
        records.write(folder / store.RECORD_FILE, record)
    ref = store.finished(place.root, stage.name, key)
    if ref is None:
        raise RuntimeError(f"stage {stage.name} wrote a record that names files which are not in {folder}")
    return ref
