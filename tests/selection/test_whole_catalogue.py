"""Any variant may be named: each gives a decision whose spec PEFT takes, with and without measured numbers."""

import json

import peft
import planted
import pytest

from lora_select import records
from lora_select.errors import InputError
from lora_select.records import Decision
from lora_select.selection.explanation import explain
from lora_select.selection.rule import select
from lora_select.variants import CANDIDATES, VARIANTS

LAYERS = [("model.layers.0.self_attn.q_proj", (768, 768)), ("model.layers.0.mlp.up_proj", (1536, 768))]


def spectra():
    return planted.of([planted.layer(name, shape) for name, shape in LAYERS])


def decide(**changes) -> Decision:
    return select(planted.profile(), spectra(), planted.inputs(**changes))


@pytest.mark.parametrize("variant", VARIANTS, ids=[variant.name for variant in VARIANTS])
def test_a_named_variant_is_taken_and_its_spec_is_whole(variant):
    decision = decide(variant=variant.name, quantized_base="nf4" if variant.name == "loftq" else None)
    spec = decision.choice
    assert spec.variant == variant.name
    assert spec.learning_rate > 0
    assert spec.num_parameters > 0
    config = getattr(peft, spec.peft_class)(**spec.peft_arguments)
    assert set(config.target_modules) == {"q_proj", "up_proj"}
    assert records.from_json(Decision, records.to_json(decision)) == decision
    assert decision.choice_key in explain(decision)


def test_what_nobody_names_is_no_candidate():
    kinds = {score.spec.variant for score in decide().candidates}
    assert kinds == {variant.name for variant in CANDIDATES}
    assert "vera" in {score.spec.variant for score in decide(variant="vera").candidates}


def test_a_rank_for_a_variant_without_one_is_refused_in_words():
    with pytest.raises(InputError, match="oft has no rank .its size is b32.; leave `selection.r` out"):
        decide(variant="oft", r=16)


def test_a_rate_that_cannot_be_transferred_is_peft_s_own_for_long_runs_and_says_so():
    decision = decide(variant="miss", planned_steps=780)
    assert decision.choice.learning_rate == 1e-4
    assert any("PEFT project's own MetaMathQA run (miss), times 1" in reason for reason in decision.reasons)
    assert decide(variant="miss", learning_rate=2e-4).choice.learning_rate == 2e-4


def test_a_shared_vector_is_counted_once():
    assert decide(variant="unilora").choice.num_parameters == 131072


def test_a_block_that_does_not_divide_is_refused_by_layer():
    odd = planted.of([planted.layer("model.layers.0.self_attn.q_proj", (768, 770))])
    with pytest.raises(
        InputError, match="oft's block size 32 does not divide the 770 inputs of model.layers.0.self_attn.q_proj"
    ):
        select(planted.profile(), odd, planted.inputs(variant="oft"))


def test_the_optimizer_is_part_of_the_spec():
    assert decide(variant="loraplus").choice.optimizer == {"name": "lora+", "lora_b_ratio": 16.0}
    assert decide().choice.optimizer == {}
    assert json.loads(records.to_json(decide()))["choice"]["peft_class"] == "LoraConfig"
