"""Adapters go on the layers that were measured, as PEFT reads what it is told, and nowhere else."""

import math

import peft
import pytest
import torch

from lora_select.records import AdapterSpec
from lora_select.selection.placement import target_modules
from lora_select.spectral.linear_layers import fused_experts, linear_layers


def spec_of(placed, ends):
    arguments = {"r": 2, "target_modules": placed}
    return AdapterSpec("lora", "all-linear", tuple(ends), 2, 4, 2.0, "default", 1e-3, "LoraConfig", arguments, {}, 0)


def test_ends_of_names_where_no_other_layer_has_them():
    assert target_modules(["model.layers.0.q_proj", "model.layers.1.up_proj"], ["lm_head"]) == ["q_proj", "up_proj"]


NAMES = {
    "another tower": (["lm.layers.0.q_proj", "lm.layers.1.q_proj"], ["tower.layers.0.q_proj"]),
    "a tower within": (["model.layers.0.q_proj", "model.layers.1.q_proj"], ["model.tower.layers.0.q_proj"]),
    "no common beginning": (["layers.0.q_proj", "blocks.0.q_proj"], ["tower.q_proj"]),
    "one layer of two alike": (["model.layers.0.q_proj"], ["model.layers.1.q_proj", "model.layers.10.q_proj"]),
    "an end that is an end of another": (["model.a.proj"], ["model.a.v_proj"]),
}


@pytest.mark.parametrize(("adapted", "others"), NAMES.values(), ids=NAMES)
def test_the_layers_and_no_others(adapted, others):
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    spec = spec_of(target_modules(adapted, others), ends)
    assert all(spec.adapts(name) for name in adapted)
    assert not any(spec.adapts(name) for name in others)


def test_peft_leaves_a_vision_tower_alone():
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
    }
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 28,
        "patch_size": 14,
    }
    config = Gemma3Config(text_config=text | {"num_key_value_heads": 1}, vision_config=vision, mm_tokens_per_image=4)
    model = Gemma3ForConditionalGeneration(config)
    names = list(linear_layers(model))
    adapted, others = [n for n in names if "language_model" in n], [n for n in names if "language_model" not in n]
    assert any(name.endswith("q_proj") for name in others)
    placed = target_modules(adapted, others)
    spec = spec_of(placed, {name.rpartition(".")[2] for name in adapted})
    assert [name for name in names if spec.adapts(name)] == adapted
    made = peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=placed))
    found = {
        name.removeprefix("base_model.model.") for name, module in made.named_modules() if hasattr(module, "lora_A")
    }
    assert found == set(adapted)


def test_fused_experts_are_counted():
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    sizes = {
        "vocab_size": 60,
        "hidden_size": 32,
        "intermediate_size": 64,
        "moe_intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_experts": 4,
    }
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_experts_per_tok": 2}
    with torch.device("meta"):
        model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**sizes, **heads))
    found = fused_experts(model)
    assert sum(math.prod(shape) for shape in found.values()) == 2 * 4 * 3 * 32 * 16
    assert all("experts" in name for name in found)
