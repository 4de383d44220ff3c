"""The memory model: closed forms of its terms, and what each dial does."""

import dataclasses
import itertools

import pytest
from training_jobs import spec

from lora_select.records import BaseModel
from lora_select.training.machine import GIB
from lora_select.training.planning import memory
from lora_select.training.planning.memory import Setting

SMOLLM = BaseModel("b", None, "b", "0", "Llama", 134_515_008, 30, 576, 49152, True, 8192)
PLAIN = Setting(1000, 100, "fp32", 0, 4, device="cuda")


def parts(adapter=None, **changes):
    return memory.parts(SMOLLM, adapter or spec(num_parameters=50_000_000), dataclasses.replace(PLAIN, **changes))


def test_a_block_keeps_what_a_llama_block_keeps():
    """SmolLM2: d 576, key and value 192, MLP 1536: norms 4 d, inputs 2 d, attention 2 d + 2 * 192, MLP 4 * 1536."""
    by_hand = 4 * (4 * 576 + 2 * 576 + 2 * 576 + 2 * 192 + 4 * 1536)
    assert memory.kept_bytes(SMOLLM, spec(), "fp32") == pytest.approx(by_hand, rel=0.01)


def test_stages_split_optimizer_then_gradients_then_weights():
    adapters = [parts(zero_stage=stage)["adapter"] * GIB / 50_000_000 for stage in (0, 1, 2, 3)]
    assert adapters == pytest.approx([4 + 4 + 8, 4 + 4 + (8 + 4) / 4, 4 + 1 + 3, 4 + 1 + 3])
    weights = [parts(zero_stage=stage)["weights"] * GIB / 134_515_008 for stage in (0, 1, 2, 3)]
    assert weights == pytest.approx([4, 4, 4, 1 + 4 * (2e7 + 49152 * 576) / 134_515_008])
    large = dataclasses.replace(SMOLLM, num_parameters=70_000_000_000, hidden_size=8192, num_hidden_layers=80)
    split = memory.parts(large, spec(), dataclasses.replace(PLAIN, zero_stage=3, precision="bf16"))["weights"] * GIB
    assert split == pytest.approx(2 * (70e9 / 4 + 2e7 + 49152 * 8192))


def test_offloading_takes_the_moments_and_the_parameters():
    assert parts(offload_optimizer=True)["adapter"] * GIB == pytest.approx(8 * 50_000_000)
    assert parts(zero_stage=3, offload_parameters=True)["weights"] * GIB == pytest.approx(4 * (2e7 + 49152 * 576))


def test_quantised_linear_layers_and_a_plain_embedding():
    kept, linear = 49152 * 576, 134_515_008 - 49152 * 576
    assert parts(precision="bf16", quantize="nf4")["weights"] * GIB == pytest.approx(2 * kept + 0.5625 * linear)
    assert parts(precision="bf16", quantize="int8")["weights"] * GIB == pytest.approx(2 * kept + linear, rel=0.01)


def test_checkpointing_keeps_one_block_and_the_boundaries():
    whole, again = parts()["activations"], parts(gradient_checkpointing=True)["activations"]
    assert again < whole / 8


def test_a_cpu_s_heap_holds_what_was_freed_with_checkpointing_too():
    plain, again = parts(device="cpu"), parts(device="cpu", gradient_checkpointing=True)
    assert plain["heap"] == again["heap"] == pytest.approx(0.6 * plain["activations"], rel=0.05)
    assert parts()["heap"] == 0


def test_weights_that_come_and_go_leave_holes_in_a_cpu_s_heap():
    whole = parts(device="cpu", zero_stage=2)
    split = parts(device="cpu", zero_stage=3)
    assert split["heap"] - whole["heap"] == pytest.approx(memory.HOLES * whole["weights"])
    assert parts(device="cpu", zero_stage=3, ranks=1)["heap"] == whole["heap"]
    assert parts(zero_stage=3)["heap"] == 0
    large = dataclasses.replace(SMOLLM, num_parameters=7_000_000_000, hidden_size=4096)
    heaps = [
        memory.parts(large, spec(), dataclasses.replace(PLAIN, device="cpu", zero_stage=n))["heap"] for n in (2, 3)
    ]
    assert heaps[0] == heaps[1]  # blocks of 32 MiB and more go back to the system


def test_activations_follow_tokens_precision_and_variant():
    assert parts(tokens=2000)["activations"] == pytest.approx(2 * parts()["activations"])
    assert 0.5 < parts(precision="bf16")["activations"] / parts()["activations"] < 1
    dora = spec(peft_arguments={"use_dora": True}, num_parameters=50_000_000)
    assert parts(dora)["activations"] > 1.3 * parts()["activations"]


def test_logits_are_bounded_by_the_chunk():
    assert parts(labels=10)["logits"] * GIB == pytest.approx(12 * 10 * 49152)
    assert parts(labels=10**6)["logits"] * GIB == pytest.approx(12 * 2**24)


def test_the_range_is_ordered_and_falls_with_the_stage():
    found = [
        memory.estimate(SMOLLM, spec(num_parameters=50_000_000), dataclasses.replace(PLAIN, zero_stage=stage))
        for stage in (0, 1, 2)
    ]
    assert all(one.low < one.expected < one.high for one in found)
    assert all(a.expected > b.expected for a, b in itertools.pairwise(found))
