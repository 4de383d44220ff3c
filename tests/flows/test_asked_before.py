"""Whether a flow run has an answer to enter: Prefect counts a resumed run as its first, and keeps what it was suspended for."""

from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, FlowRunPolicy
from prefect.context import FlowRunContext

from tasks.suspend import asked_before


def test_no_run_was_never_asked():
    assert not asked_before()


@pytest.mark.parametrize(("keys", "expected"), [(set(), False), ({"approval-run-6-0"}, True)])
def test_a_run_that_was_suspended_for_an_answer_goes_on_although_it_is_its_first(keys, expected):
    run = FlowRun(flow_id=uuid4(), run_count=1, empirical_policy=FlowRunPolicy(pause_keys=keys))
    with FlowRunContext.model_construct(flow_run=run):
        assert asked_before() is expected
