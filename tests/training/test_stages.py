"""A plan never has a ZeRO stage at which the adapter was seen to fail, on the base as it is held."""

import dataclasses

import pytest
import test_plan as planning
from training_jobs import plan, spec

from lora_select.errors import InputError
from lora_select.training import failures, zero
from lora_select.training.failures import Failure
from lora_select.training.supervisor import recovery
from lora_select.variants import support

RIEMANNIAN = spec(variant="riemannian", optimizer={"name": "riemannian"})


@pytest.fixture
def lora_fails_split_on_nf4(monkeypatch):
    row = {"llama/fp32/train": "works", "llama/nf4-zero2/train": "works", "llama/nf4-zero3/train": "refused: seen"}
    row |= {f"llama/int8-zero{stage}/train": "refused: no" for stage in (0, 2, 3)}
    monkeypatch.setattr(support, "matrix", lambda: {"lora": row})


def test_the_choice_is_among_what_works(lora_fails_split_on_nf4):
    assert zero.to_try(spec(), "auto", None) == (0, 2, 3)
    assert zero.to_try(spec(), "auto", "nf4") == (0, 2)
    assert zero.to_try(RIEMANNIAN, "auto", None) == (0,)


def test_a_stage_that_was_asked_for_and_fails_is_a_sentence(lora_fails_split_on_nf4):
    assert zero.to_try(spec(), 3, None) == (3,)
    with pytest.raises(
        InputError, match=r"lora does not train under ZeRO-3 on a nf4 base .*seen; set .* 0 or 2, or auto"
    ):
        zero.to_try(spec(), 3, "nf4")
    with pytest.raises(InputError, match=r"does not train under ZeRO-0 on a int8 base .*choose another variant"):
        zero.to_try(spec(), "auto", "int8")
    with pytest.raises(InputError, match=r"'riemannian' .* needs whole factors, which ZeRO stage 2 splits"):
        zero.to_try(RIEMANNIAN, 2, None)


def test_the_plan_does_not_split_what_must_be_whole():
    """Where the model does not fit at stage 0, a stage that works is taken, and without one the plan refuses."""
    large = dataclasses.replace(planning.BASE, num_parameters=60 * 10**9, hidden_size=8192, num_hidden_layers=80)
    assert planning.plan(planning.GPUS, large, batch_size=128).zero_stage == 3
    with pytest.raises(InputError, match=r"at ZeRO-0, .*; ZeRO-3 is no way out: .* needs whole factors"):
        planning.plan(planning.GPUS, large, adapter=RIEMANNIAN, batch_size=128)
    with pytest.raises(InputError, match="needs whole factors"):
        planning.plan(planning.GPUS, adapter=RIEMANNIAN, zero_stage=2)


def test_out_of_memory_goes_on_to_the_next_stage_that_works():
    start = plan(micro_batch_size=1, gradient_checkpointing=True, effective_batch_size=2)
    failure = Failure(failures.OUT_OF_MEMORY, 7, "seen")
    assert dict(recovery.propose(failure, start, [], 0, stages=(0, 2)).after) == {"zero_stage": 2}
    assert recovery.propose(failure, start, [], 0, stages=(0,)) is None
