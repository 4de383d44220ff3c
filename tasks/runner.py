"""A stage of the line as a Prefect task.

Two caches, one key. Prefect's says `Cached` in its pages; the folder's `record.json` is what counts, because it survives
Prefect's store and is checked against the files it names.
"""

from typing import Any

from prefect import task
from prefect.cache_policies import CacheKeyFnPolicy

from lora_select.errors import InputError
from lora_select.pipeline.stage import Work
from lora_select.pipeline.workspace import StageRef
from lora_select.records.digests import key_of

RETRY_DELAYS = [5.0, 30.0]


def as_task(work: Work) -> StageRef:
    """Do a piece of work as a task of the flow that runs now, or take Prefect's cached result of it."""
    # A result names files below the runs folder, so the folder is in Prefect's key: another clone has its own.
    prefix = f"lora-select/{key_of({'root': str(work.root.resolve())})}/{work.stage}"

    @task(
        name=work.stage,
        task_run_name=f"{work.label}-{{key}}",
        cache_policy=CacheKeyFnPolicy(cache_key_fn=lambda _context, parameters: f"{prefix}/{parameters['key']}"),
        persist_result=True,
        result_serializer="json",
        refresh_cache=work.fresh,
        retries=work.retries,
        retry_delay_seconds=RETRY_DELAYS[: work.retries],
        retry_condition_fn=_is_passing,
    )
    def stage(key: str) -> StageRef:  # noqa: ARG001  (Prefect's cache key is made from it)
        return work.call()

    return stage(work.key)


def _is_passing(_task: Any, _task_run: Any, state: Any) -> bool:
    """Whether another try may help. A plain function: Prefect never retries on a callable of any other kind."""
    try:
        state.result()
    except InputError:
        return False
    except Exception:
        return True
    return False
