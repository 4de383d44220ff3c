"""The plan keeps the effective batch, fits the memory, and refuses what cannot be done with the way out."""

import dataclasses

import pytest
from training_jobs import rows, spec

from lora_select.errors import InputError
from lora_select.records import BaseModel, DatasetProfile, FileRef, Quantiles, Replay, SplitProfile
from lora_select.training.machine import Machine
from lora_select.training.planning.measure import Measured
from lora_select.training.planning.plan import make_plan, replay_rows
from lora_select.training.worker.loop import learning_rate

CPU = Machine("cpu", 1, 2, 24.0, False)
GPUS = Machine("cuda", 4, 16, 80.0, True)
SPLIT = SplitProfile(
    800, 64000, 52000, 12000, Quantiles(40, 79, 100, 120, 133, 80.0), Quantiles(5, 12, 30, 60, 80, 15.0), 0, 0, 0, 0
)
NOTHING = FileRef("x", "0", 0)
PROFILE = DatasetProfile("d", "m", 256, SPLIT, SPLIT, 0, 3.0, 0.1, 64, 2.0, 1e5, (), NOTHING, NOTHING)
ROWS = rows(800)
BASE = BaseModel("b", None, "b", "0", "Llama", 134_500_000, 30, 576, 49152, True, 8192)
WANTED = {
    "num_processes": "auto", "precision": "auto", "zero_stage": "auto", "batch_size": 16,
    "micro_batch_size": None, "packing": "auto", "gradient_checkpointing": "auto", "epochs": 1.0, "max_steps": None, "warmup_fraction": 0.1, "lr_schedule": "cosine",
    "weight_decay": 0.0, "max_grad_norm": 1.0, "checkpoint_every": 20, "keep_checkpoints": 2, "seed": 0, "quantize": None,
}  # fmt: skip


def plan(machine=CPU, base=BASE, adapter=None, **changes):
    return make_plan(PROFILE, adapter or spec(), base, machine, WANTED | changes)


@pytest.mark.parametrize(
    ("machine", "changes", "expected"),
    [
        (CPU, {}, (2, 8, 1)),
        (CPU, {"num_processes": 1}, (1, 8, 2)),
        (CPU, {"batch_size": 6}, (2, 3, 1)),
        (CPU, {"micro_batch_size": 2}, (2, 2, 4)),
        (GPUS, {}, (4, 4, 1)),
        (GPUS, {"batch_size": 128}, (4, 32, 1)),
        (GPUS, {"batch_size": 256}, (4, 32, 2)),
    ],
)
def test_ranks_micro_batch_and_accumulation_make_the_batch(machine, changes, expected):
    made = plan(machine, **changes)
    assert (made.num_processes, made.micro_batch_size, made.gradient_accumulation_steps) == expected
    assert expected[0] * expected[1] * expected[2] == made.effective_batch_size
    assert made.total_steps == -(-800 // made.effective_batch_size)


def test_so_many_epochs_as_the_kept_rows_want():
    made = plan(epochs="auto", validation=0.05, patience=3)
    assert (made.epochs, made.lr_schedule, made.patience) == (10.0, "cosine", 3)
    assert made.total_steps == -(-10 * (800 - made.validation_rows) // 16)
    assert made.warmup_steps == 5  # of the first epoch's 48: where the last one ends is not known
    assert made.validation_every <= 48
    assert plan(epochs="auto", validation=0.05, patience=3, max_steps=20).total_steps == 20
    few = dataclasses.replace(PROFILE, train=dataclasses.replace(SPLIT, rows=20))
    with pytest.raises(InputError, match="20 rows are too few"):
        make_plan(few, spec(), BASE, CPU, WANTED | {"epochs": "auto", "validation": 0.05, "patience": 3})


def test_reference_text_is_trained_on_beside_all_rows_of_the_task():
    beside = Replay(5_000, {"prose": replay_rows(760, 0.05)}, 40, FileRef("replay_tokens.parquet", "0" * 64, 1))
    made = make_plan(PROFILE, spec(), BASE, CPU, WANTED | {"validation": 0.05}, replay=beside)
    alone = plan(validation=0.05)
    assert (made.total_steps, alone.total_steps) == (-(-800 // 16), -(-760 // 16))
    assert (made.validation_rows, made.replay) == (alone.validation_rows, beside) == (40, beside)
    assert any("40 of the rows are reference text" in reason for reason in made.reasons)


def test_precision_follows_the_machine_and_a_changed_base_stays_in_fp32():
    assert plan().precision == "fp32"
    assert plan(GPUS).precision == "bf16"
    for start in ("pissa", "olora", "milora", "corda_ipm", "lora_ga"):
        changed = plan(GPUS, adapter=spec(variant=start, init=start))
        assert changed.precision == "fp32"
        assert any(f"what {start} leaves of it would be rounded" in reason for reason in changed.reasons)
    assert plan(GPUS, adapter=spec(init="eva")).precision == "bf16"


def test_micro_batch_then_checkpointing_then_stage():
    """As the model grows, the micro-batch falls first, then activations are computed twice, then the stage rises."""
    seen = []
    for billions in (1, 20, 30, 34, 36, 60, 100):
        model = dataclasses.replace(BASE, num_parameters=billions * 10**9, hidden_size=8192, num_hidden_layers=80)
        made = plan(GPUS, base=model, batch_size=128)
        seen.append((made.zero_stage, made.gradient_checkpointing, -made.micro_batch_size))
        assert made.memory_gib.expected <= 0.9 * 80
        assert made.micro_batch_size * made.gradient_accumulation_steps * 4 == 128
    assert seen[0] == (0, False, -16)
    assert seen == sorted(seen)
    assert {stage for stage, _, _ in seen} >= {0, 3}
    assert any(checkpointing for stage, checkpointing, _ in seen if stage == 0)
    with pytest.raises(InputError, match=r"needs about .* GiB a rank at ZeRO-3, 12.0 are there"):
        plan(base=dataclasses.replace(BASE, num_parameters=70_000_000_000, hidden_size=8192, num_hidden_layers=80))


def test_a_quantised_base_fits_where_a_plain_one_does_not():
    """7e9 parameters in bf16 are 13 GiB of weights, in nf4 4: on a GPU of 12 GiB the plan needs no ZeRO-3."""
    small = dataclasses.replace(GPUS, memory_gib=12.0)
    model = dataclasses.replace(BASE, num_parameters=7 * 10**9, hidden_size=4096, num_hidden_layers=32)
    changes = {"batch_size": 8, "precision": "bf16"}
    assert plan(small, base=model, **changes).zero_stage == 3
    made = plan(small, base=model, quantize="nf4", **changes)
    assert made.zero_stage == 0
    assert made.memory_gib.expected < plan(small, base=model, quantize="int8", **changes).memory_gib.expected


def test_the_heaviest_micro_batch_decides_and_packing_needs_less():
    packed, padded = plan_of_rows(packing=True), plan_of_rows(packing=False)
    assert packed.packing
    assert not padded.packing
    assert packed.memory_gib.expected < padded.memory_gib.expected
    uniform = plan()  # rows unknown: all of the largest length
    assert padded.memory_gib.expected < uniform.memory_gib.expected


def plan_of_rows(**changes):
    return make_plan(PROFILE, spec(), BASE, CPU, WANTED | changes, ROWS)


def test_what_was_measured_replaces_what_was_computed():
    measured = Measured(None, 1000, 10.0, 2.0, 300)
    made = make_plan(PROFILE, spec(), BASE, CPU, WANTED, ROWS, measured)
    tokens = 64_000 / (2 * 100) / 60  # two ranks of 100 tokens/s
    assert made.minutes.expected == pytest.approx(tokens + 20 / 60, abs=0.01)
    assert made.minutes.low < made.minutes.expected < made.minutes.high
    assert made.memory_gib.expected == pytest.approx(2.12, abs=0.01)
    assert made.packing
    assert any("100 tokens/s a rank" in reason for reason in made.reasons)


def test_memory_of_zero_3_is_that_of_ranks_that_ran_together():
    """They had DeepSpeed and the optimizer's state; what one process alone takes says nothing of them."""
    computed = plan_of_rows(zero_stage=3).memory_gib
    alone, together = Measured(None, 1000, 10.0, 2.0, 300), Measured(None, 1000, 10.0, 2.0, 300, ranks=2)
    made = [make_plan(PROFILE, spec(), BASE, CPU, WANTED | {"zero_stage": 3}, ROWS, one) for one in (alone, together)]
    assert made[0].memory_gib == computed
    assert made[1].memory_gib.expected == 2.0
    assert made[0].minutes == made[1].minutes


@pytest.mark.parametrize(
    "measured", [Measured("rows are padded, not packed: X", 10, 1.0, 1.0, 10), "speed was not measured: X"]
)
def test_packing_falls_back_with_the_reason_or_is_an_error(measured):
    made = make_plan(PROFILE, spec(), BASE, CPU, WANTED, ROWS, measured)
    assert not made.packing
    assert any("padded, not packed" in reason for reason in made.reasons)
    with pytest.raises(InputError, match="`training.packing` is true, but"):
        make_plan(PROFILE, spec(), BASE, CPU, WANTED | {"packing": True}, ROWS, measured)


@pytest.mark.parametrize(
    ("machine", "changes", "words"),
    [
        (CPU, {"batch_size": 1, "num_processes": 2}, "smaller than the 2 ranks"),
        (
            GPUS,
            {"zero_stage": 0, "micro_batch_size": 4, "gradient_checkpointing": False, "batch_size": 10},
            "no multiple",
        ),
        (CPU, {"batch_size": 7}, "no multiple of the 2 ranks; use 6 or 8"),
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
