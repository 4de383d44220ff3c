"""Remedies: bounded, in order, and none of them touches the effective batch or the seed."""

import dataclasses

import pytest
from training_jobs import plan

from lora_select.errors import InputError, WorldError
from lora_select.training import failures, heartbeat
from lora_select.training.failures import Ending, Failure, TrainingError
from lora_select.training.supervisor import preflight, recovery
from lora_select.training.worker import sanity


def remedies_until_none(kind, start, limit=50):
    """Apply remedies for one class of failure until none is left."""
    history = []
    for _ in range(limit):
        current = recovery.applied(start, history)
        restarts = sum(not remedy.after for remedy in history)
        remedy = recovery.propose(Failure(kind, 7, "seen"), current, history, restarts)
        if remedy is None:
            return history, current
        history.append(remedy)
    raise AssertionError("the remedies have no end")


def test_memory_goes_down_in_order():
    start = plan(micro_batch_size=6, gradient_accumulation_steps=2, effective_batch_size=24)
    history, end = remedies_until_none(failures.OUT_OF_MEMORY, start)
    steps = [dict(remedy.after) for remedy in history]
    assert steps == [
        {"micro_batch_size": 3, "gradient_accumulation_steps": 4},
        {"micro_batch_size": 1, "gradient_accumulation_steps": 12},
        {"gradient_checkpointing": True},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
    ]
    assert history[0].before == {"micro_batch_size": 6, "gradient_accumulation_steps": 2}
    assert (end.effective_batch_size, end.seed, end.total_steps) == (24, start.seed, start.total_steps)


def test_an_optimizer_that_needs_whole_factors_stays_at_zero_0():
    start = plan(micro_batch_size=1, gradient_checkpointing=True, effective_batch_size=2)
    failure = Failure(failures.OUT_OF_MEMORY, 7, "seen")
    assert recovery.propose(failure, start, [], 0, stages=(0,)) is None
    assert dict(recovery.propose(failure, start, [], 0).after) == {"zero_stage": 1}


def test_one_rank_has_nothing_to_share_out():
    start = plan(num_processes=1, micro_batch_size=8)
    history, end = remedies_until_none(failures.OUT_OF_MEMORY, start)
    assert end.zero_stage == 0
    assert len(history) == 4


@pytest.mark.parametrize(
    ("kind", "times"),
    [
        (failures.DIVERGED, 1),
        (failures.DISK_FULL, 1),
        (failures.RANK_LOST, recovery.MAX_RESTARTS),
        (failures.STUCK, recovery.MAX_RESTARTS),
        (failures.NO_EFFECT, 0),
        (failures.STOPPED, 0),
        (failures.ERROR, 0),
    ],
)
def test_every_class_is_bounded_and_keeps_batch_and_seed(kind, times):
    history, end = remedies_until_none(kind, plan())
    assert len(history) == times
    kept = ("effective_batch_size", "seed", "total_steps", "epochs", "num_processes", "precision")
    assert all(getattr(end, name) == getattr(plan(), name) for name in kept)


def test_divergence_halves_the_rate():
    remedy = recovery.propose(Failure(failures.DIVERGED, 7, "nan"), plan(learning_rate=1e-3), [], 0)
    assert remedy.before == {"learning_rate": 1e-3}
    assert remedy.after == {"learning_rate": 5e-4}


def test_remedies_of_another_plan_are_refused():
    (remedy, *_), _ = remedies_until_none(failures.OUT_OF_MEMORY, plan(micro_batch_size=4, effective_batch_size=8))
    with pytest.raises(ValueError, match="effective batch from 6 to 8"):
        recovery.applied(plan(micro_batch_size=3, effective_batch_size=6), [remedy])


@pytest.mark.parametrize(
    ("kind", "error", "words"),
    [
        (failures.OUT_OF_MEMORY, InputError, "lower `dataset.max_length`"),
        (failures.DIVERGED, InputError, "lower `selection.learning_rate`"),
        (failures.NO_EFFECT, InputError, "would change nothing"),
        (failures.DISK_FULL, WorldError, "free some"),
        (failures.RANK_LOST, WorldError, "the same command resumes"),
    ],
)
def test_what_is_left_to_the_user_names_the_way_out(kind, error, words):
    made = recovery.error(Failure(kind, 7, "seen"), plan(), "run/train.log")
    assert isinstance(made, error)
    assert words in str(made)
    assert "run/train.log" in str(made)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), failures.OUT_OF_MEMORY),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            failures.OUT_OF_MEMORY,
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), failures.OUT_OF_MEMORY),
        (OSError(28, "No space left on device"), failures.DISK_FULL),
        (RuntimeError("I/O error: No space left on device (os error 28)"), failures.DISK_FULL),
        (RuntimeError("Timed out waiting 10000ms for recv operation to complete"), failures.STUCK),
        (RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed by peer [127.0.0.1]:1"), failures.RANK_LOST),
        (TrainingError(failures.NO_EFFECT, "B is zero"), failures.NO_EFFECT),
        (KeyError("x"), failures.ERROR),
    ],
)
def test_exceptions_of_a_rank_have_a_class(error, kind):
    assert failures.kind_of(error) == kind


def test_a_ranks_own_trouble_comes_before_a_lost_peer(tmp_path):
    for rank, error in enumerate([RuntimeError("Connection closed by peer"), MemoryError("activations")]):
        heart = heartbeat.Heartbeat(tmp_path, rank)
        heart("step", 5)
        failures.report(tmp_path, rank, heart, error)
    found = failures.diagnose(tmp_path, tmp_path / "train.log", Ending(1))
    assert (found.kind, found.step) == (failures.OUT_OF_MEMORY, 5)
    assert "rank 1" in found.message


def test_a_collective_that_timed_out_comes_before_the_kill_of_the_rank_that_hung(tmp_path):
    (tmp_path / "train.log").write_text("  exitcode  : -9 (pid: 7)")
    heart = heartbeat.Heartbeat(tmp_path, 0)
    heart("step", 13)
    failures.report(tmp_path, 0, heart, RuntimeError("Timed out waiting 40000ms for recv operation to complete"))
    found = failures.diagnose(tmp_path, tmp_path / "train.log", Ending(1))
    assert (found.kind, found.step) == (failures.STUCK, 13)
    assert "40000ms" in found.message


@pytest.mark.parametrize(
    ("signals", "kind"), [((15,), failures.ERROR), ((15, 9), failures.RANK_LOST), ((9,), failures.RANK_LOST)]
)
def test_a_rank_that_torchrun_ended_after_another_s_error_is_not_the_cause(tmp_path, signals, kind):
    (tmp_path / "train.log").write_text("\n".join(f"  exitcode  : -{number} (pid: 7)" for number in signals))
    heart = heartbeat.Heartbeat(tmp_path, 0)
    heart("loading", 0)
    failures.report(tmp_path, 0, heart, ValueError("no such layer"))
    found = failures.diagnose(tmp_path, tmp_path / "train.log", Ending(1))
    assert found.kind == kind
    assert ("no such layer" in found.message) == (kind == failures.ERROR)


@pytest.mark.parametrize(
    ("log", "ending", "kind"),
    [
        ("  exitcode  : -9 (pid: 7)", Ending(1), failures.RANK_LOST),
        ("  exitcode  : -15 (pid: 7)", Ending(1), failures.RANK_LOST),
        ("  exitcode  : -9 (pid: 7)", Ending(1, memory_kills=1), failures.OUT_OF_MEMORY),
        ("  exitcode  : -9 (pid: 7)", Ending(1, log_start=27), failures.ERROR),
        ("", Ending(-9), failures.RANK_LOST),
        ("", Ending(failures.LAUNCHER_CODE), failures.RANK_LOST),
        ("", Ending(143), failures.STOPPED),
        ("", Ending(failures.STUCK_CODE), failures.STUCK),
        ("ValueError: no such layer", Ending(1), failures.ERROR),
    ],
)
def test_signs_when_no_rank_could_say(tmp_path, log, ending, kind):
    (tmp_path / "train.log").write_text(log)
    found = failures.diagnose(tmp_path, tmp_path / "train.log", ending)
    assert found.kind == kind
    assert kind != failures.ERROR or ending.log_start or "no such layer" in found.message


def test_divergence_needs_a_factor_and_nats():
    assert not sanity.diverging([3.0] * 10 + [8.9] * 10)
    assert sanity.diverging([3.0] * 10 + [9.1] * 10)
    assert not sanity.diverging([0.1] * 10 + [2.0] * 10)
    assert not sanity.diverging([3.0] * 10 + [20.0] * 5)
    assert sanity.last_good_step([3.0] * 10 + [2.0] * 10 + [50.0] * 10) == 20


def test_a_start_that_cannot_end_well_is_refused():
    told = dataclasses.make_dataclass("Told", ["plan", "rendezvous"])
    with pytest.raises(InputError, match="rate is 0: training would change nothing"):
        preflight.check(told(plan(learning_rate=0.0), None))
    with pytest.raises(InputError, match="set LORA_SELECT_RENDEZVOUS"):
        preflight.check(told(plan(nodes=2), None))
    with pytest.raises(InputError, match="spread evenly"):
        preflight.check(told(plan(nodes=3), "host:1"))


def test_a_busy_gpu_is_named():
    preflight.refuse_busy([(70.0, []), (12.0, [])], 10.0)
    with pytest.raises(InputError, match=r"GPU 1 has 3.0 GiB free and a rank needs at least 10.0; .* by process 42"):
        preflight.refuse_busy([(70.0, []), (3.0, [42])], 10.0)
