"""A run that is resumed while its process still ends is offered to the worker again, which must not end for it."""

import asyncio
from types import SimpleNamespace
from uuid import uuid4

import anyio
import pytest
from prefect.workers.base import BaseWorker
from prefect.workers.process import ProcessWorker
from worker import PatientWorker


def offered_again(worker: ProcessWorker) -> list:
    """What a worker that may run one flow takes of two: one that still holds the place, and one that never ran."""
    ending, other = (SimpleNamespace(flow_run=SimpleNamespace(id=uuid4(), name=name)) for name in ("ending", "other"))

    async def look() -> list:
        worker._limiter = anyio.CapacityLimiter(1)
        worker._limiter.acquire_on_behalf_of_nowait(ending.flow_run.id)
        return await worker._submit_scheduled_flow_runs([ending, other])

    return asyncio.run(look())


def test_a_run_that_still_holds_its_place_is_left_for_the_next_look():
    assert offered_again(PatientWorker(work_pool_name="pool", limit=1)) == []


def test_prefects_own_worker_ends_so_the_mend_is_still_needed():
    with pytest.raises(RuntimeError, match="already holding"):
        offered_again(ProcessWorker(work_pool_name="pool", limit=1))


def test_a_pool_of_processes_is_served_by_it():
    assert BaseWorker.get_worker_class_from_type("process") is PatientWorker
