"""SIGKILL of every kind of process at random steps: nothing stays alive, nothing is lost, each step counts once."""

import os
import random
import signal
import threading

import pytest
from fault_harness import assert_equal, kept, last_step, remedied, result, start, tracked
from training_jobs import job

from lora_select.training.job import CHECKPOINTS, LOG
from lora_select.training.worker import checkpoints

pytestmark = pytest.mark.fault
STEP = random.Random(20261125)


def again(before: int, adapter) -> int:
    """Steps that were done twice: from the checkpoint that was taken up to the kill."""
    return max(0, before - adapter.resumed_from[-1]) if adapter.resumed_from else before


@pytest.mark.parametrize("victim", ["rank 0", "rank 1", "torchrun", "supervisor"])
def test_a_process_below_the_flow(reference, harmed, tmp_path, outcome, victim):
    points = tracked(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    run = harmed()
    run.until_step(STEP.randint(6, 30))
    pids = {"rank 0": run.ranks[0], "rank 1": run.ranks[1], "torchrun": run.launcher, "supervisor": run.supervisor}
    before = last_step(tmp_path)
    os.kill(pids[victim], signal.SIGKILL)
    assert run.wait() == 0
    run.no_process_is_left()
    assert_equal(tmp_path, reference)
    kept(tmp_path)
    assert remedied(tmp_path) == ["rank lost"]
    assert points() == list(range(1, 41))
    outcome(
        f"SIGKILL of {victim} after step {before}",
        "restarted from the last checkpoint",
        again(before, result(tmp_path)),
    )


def test_the_flow(reference, harmed, tmp_path, outcome):
    points = tracked(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    run = harmed()
    run.until_step(STEP.randint(6, 30))
    before = last_step(tmp_path)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    run.no_process_is_left()
    assert run.again().wait() == 0
    assert_equal(tmp_path, reference)
    assert points() == list(range(1, 41))
    text = "the supervisor ended the ranks; the same command resumed"
    outcome(f"SIGKILL of the flow after step {before}", text, again(before, result(tmp_path)))


def test_the_flow_when_the_supervisor_cannot_notice(reference, harmed, tmp_path, outcome):
    """A stopped supervisor and its ranks outlive the flow; the next start ends them before it begins."""
    run = harmed()
    run.until_step(STEP.randint(6, 30))
    before = last_step(tmp_path)
    os.kill(run.supervisor, signal.SIGSTOP)
    for pid in run.ranks:
        os.kill(pid, signal.SIGSTOP)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    left = set(run._known)
    assert run.again().wait() == 0
    assert left
    run.no_process_is_left()
    assert_equal(tmp_path, reference)
    text = "the next start ended what was left, then resumed"
    outcome(
        f"SIGKILL of the flow with supervisor and ranks stopped, after step {before}",
        text,
        again(before, result(tmp_path)),
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_cancel(reference, harmed, tmp_path, outcome, number):
    run = harmed()
    run.until_step(STEP.randint(6, 30))
    before = last_step(tmp_path)
    run.process.send_signal(number)
    assert run.process.wait(60) != 0
    run.no_process_is_left()
    assert run.again().wait() == 0
    assert_equal(tmp_path, reference)
    assert remedied(tmp_path) == []
    text = "all ranks ended; the same command resumed"
    outcome(f"{number.name} to the flow after step {before}", text, again(before, result(tmp_path)))


def test_a_kill_in_mid_checkpoint_and_a_torn_file(reference, harmed, tmp_path, outcome):
    """The newest checkpoint is cut to half and a half-written one lies beside it: the one before is taken."""
    run = harmed()
    run.until(lambda: 15 in checkpoints.found(tmp_path / CHECKPOINTS))
    before = last_step(tmp_path)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    run.no_process_is_left()
    *_, older, newest = checkpoints.found(tmp_path / CHECKPOINTS)
    file = tmp_path / CHECKPOINTS / checkpoints.name(newest) / checkpoints.OPTIMIZER
    os.truncate(file, file.stat().st_size // 2)
    (tmp_path / CHECKPOINTS / ".writing-35").mkdir()
    assert run.again().wait() == 0
    assert_equal(tmp_path, reference)
    assert result(tmp_path).resumed_from == (older,)
    assert (
        f"{checkpoints.name(newest)} is not used: {checkpoints.OPTIMIZER} is missing or was changed"
        in (tmp_path / LOG).read_text()
    )
    outcome("SIGKILL of the flow and a torn newest checkpoint", "resumed from the one before", before - older)


def test_a_rank_that_is_lost_again_and_again(harmed, tmp_path, outcome):
    """Three restarts, then an error; the same command begins with three new ones and finishes."""
    run = harmed(total_steps=4000, epochs=100.0)
    for attempt in range(1, 5):
        run.until_attempt(attempt)
        run.until(lambda: len(run.ranks) == 2)
        os.kill(run.ranks[1], signal.SIGKILL)
    assert run.wait() == 1
    run.no_process_is_left()
    assert remedied(tmp_path) == ["rank lost"] * 3
    assert "training did not finish, rank lost" in (tmp_path / "flow.log").read_text()
    outcome("SIGKILL of rank 1 four times in a row", "3 restarts, then an error; the folder can be resumed", 0)


def test_two_starts_at_once(reference, harmed, tmp_path, outcome):
    """The second start waits for the first one's result: one supervisor, one training."""
    run = harmed()
    run.until_step(2)
    supervisor = run.supervisor
    second = start(tmp_path)
    waited = threading.Event()
    run.until_step(20)
    assert second.poll() is None
    assert run.supervisor == supervisor
    assert run.wait() == 0
    assert second.wait(60) == 0
    assert not waited.is_set()
    assert_equal(tmp_path, reference)
    assert result(tmp_path).resumed_from == ()
    outcome("a second start in the same folder", "it waited for the first one's result", 0)


def test_resume_with_other_ranks_and_stage(reference, harmed, tmp_path, outcome):
    """Killed with two ranks at ZeRO-2, taken up by one at ZeRO-0."""
    from fault_harness import WANTED

    from lora_select.training.job import read_job, write_job

    run = harmed(zero_stage=2)
    run.until_step(12)
    before = last_step(tmp_path)
    os.kill(run.process.pid, signal.SIGKILL)
    run.process.wait(10)
    run.no_process_is_left()
    told = job(tmp_path, read_job(tmp_path / WANTED).base_path, total_steps=40, num_processes=1, micro_batch_size=8)
    (tmp_path / WANTED).write_text(write_job(tmp_path, told).read_text())
    assert run.again().wait() == 0
    assert_equal(tmp_path, reference, rtol=1e-5)
    text = "one rank at ZeRO-0 resumed what two ranks at ZeRO-2 had done"
    outcome(f"SIGKILL of the flow after step {before}, other ranks", text, again(before, result(tmp_path)))
