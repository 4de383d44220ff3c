"""The plan keeps the effective batch, fits the memory, and refuses what cannot be done with the way out."""

import dataclasses
import itertools

import pytest
from training_jobs import spec

from lora_select.errors import InputError
from lora_select.records import BaseModel, DatasetProfile, FileRef, Quantiles, SplitProfile
from lora_select.training.plan import Machine, make_plan, memory
from lora_select.training.steps import learning_rate

CPU = Machine("cpu", 1, 2, 24.0, False)
GPUS = Machine("cuda", 4, 16, 80.0, True)
SPLIT = SplitProfile(
    800, 64000, 52000, 12000, Quantiles(40, 79, 100, 120, 133, 80.0), Quantiles(5, 12, 30, 60, 80, 15.0), 0, 0, 0, 0
)
NOTHING = FileRef("x", "0", 0)
PROFILE = DatasetProfile("d", "m", 256, SPLIT, SPLIT, 0, 3.0, 0.1, 64, 2.0, 1e5, (), NOTHING, NOTHING)
BASE = BaseModel("b", None, "b", "0", "Llama", 134_500_000, 30, 576, 49152, True, 8192)
WANTED = {
    "num_processes": "auto", "precision": "auto", "zero_stage": "auto", "effective_batch_size": 16,
    "micro_batch_size": None, "epochs": 1.0, "max_steps": None, "warmup_fraction": 0.1, "lr_schedule": "cosine",
    "weight_decay": 0.0, "max_grad_norm": 1.0, "checkpoint_every": 20, "keep_checkpoints": 2, "seed": 0,
}  # fmt: skip


def plan(machine=CPU, base=BASE, adapter=None, **changes):
    return make_plan(PROFILE, adapter or spec(), base, machine, WANTED | changes)


@pytest.mark.parametrize(
    ("machine", "changes", "expected"),
    [
        (CPU, {}, (2, 8, 1)),
        (CPU, {"num_processes": 1}, (1, 8, 2)),
        (CPU, {"effective_batch_size": 6}, (2, 3, 1)),
        (CPU, {"micro_batch_size": 2}, (2, 2, 4)),
        (GPUS, {}, (4, 4, 1)),
        (GPUS, {"effective_batch_size": 128}, (4, 8, 4)),
    ],
)
def test_ranks_micro_batch_and_accumulation_make_the_batch(machine, changes, expected):
    made = plan(machine, **changes)
    assert (made.num_processes, made.micro_batch_size, made.gradient_accumulation_steps) == expected
    assert expected[0] * expected[1] * expected[2] == made.effective_batch_size
    assert made.total_steps == -(-800 // made.effective_batch_size)


def test_precision_follows_the_machine_and_pissa_keeps_fp32():
    assert plan().precision == "fp32"
    assert plan(GPUS).precision == "bf16"
    pissa = plan(GPUS, adapter=spec(init="pissa"))
    assert pissa.precision == "fp32"
    assert any("residual" in reason for reason in pissa.reasons)


def test_stage_rises_until_the_model_fits():
    large = dataclasses.replace(BASE, num_parameters=70_000_000_000, hidden_size=8192, num_hidden_layers=80)
    assert plan(GPUS).zero_stage == 0
    assert plan(GPUS, base=large).zero_stage == 3
    with pytest.raises(InputError, match=r"needs about .* GiB a rank at ZeRO-3, 12.0 are there; lower"):
        plan(base=large)


def test_memory_falls_with_the_stage_and_is_ordered():
    found = [memory(BASE, spec(num_parameters=50_000_000), 1000, "bf16", stage, 4, "cuda") for stage in (0, 1, 2, 3)]
    assert [a.expected > b.expected for a, b in itertools.pairwise(found)] == [True] * 3
    assert all(one.low < one.expected < one.high for one in found)


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        (CPU, {"effective_batch_size": 1, "num_processes": 2}, "smaller than the 2 ranks"),
        (CPU, {"effective_batch_size": 7}, "no multiple of the 2 ranks; use 6 or 8"),
        (CPU, {"micro_batch_size": 3}, "does not divide the 8 rows"),
        (CPU, {"num_processes": 5}, "over the 2 cores"),
        (GPUS, {"num_processes": 8}, "over the 4 GPUs"),
    ],
)
def test_contradictions_name_the_way_out(machine, changes, words):
    with pytest.raises(InputError, match=words):
        plan(machine, **changes)


def test_rate_rises_then_falls_to_zero():
    made = plan()
    rates = [learning_rate(made, step) for step in range(made.total_steps)]
    assert max(rates) == made.learning_rate == rates[made.warmup_steps]
    assert rates[0] == pytest.approx(made.learning_rate / made.warmup_steps)
    assert rates[-1] < 0.01 * made.learning_rate
    flat = dataclasses.replace(made, lr_schedule="constant")
    assert learning_rate(flat, made.total_steps - 1) == made.learning_rate
