import numpy as np
import pytest
import reference
import torch

from lora_select.diagnostics.adapter_curvature import LabelLogits, adapter_curvature
from lora_select.diagnostics.curvature import largest_curvature
from lora_select.diagnostics.jacobian import ROUTES, Differences
from lora_select.errors import InputError
from lora_select.records import AdapterSpec


def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 23}
    return LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2)), ("q_proj", "down_proj")


def gemma():
    from transformers import Gemma3ForCausalLM, Gemma3TextConfig

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 23, "head_dim": 8}
    config = Gemma3TextConfig(**sizes, num_attention_heads=2, num_key_value_heads=1, sliding_window=4)
    return Gemma3ForCausalLM(config), ("q_proj", "down_proj")


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=23, n_positions=16)), ("c_attn",)


def bert():
    from transformers import BertConfig, BertForSequenceClassification

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 23}
    return BertForSequenceClassification(BertConfig(**sizes, num_attention_heads=2, num_labels=3)), ("query", "value")


def build(make, kind=torch.float64):
    torch.manual_seed(0)
    model, targets = make()
    return model.to(kind).eval(), targets


def batch(make) -> dict[str, torch.Tensor]:
    ids = torch.randint(3, 23, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[:, :5] = -100
    if make is bert:
        labels = torch.tensor([0, -100, 2])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def adapter(targets, r: int = 2, **arguments) -> AdapterSpec:
    return AdapterSpec(
        variant="lora",
        targets="some",
        target_modules=targets,
        r=r,
        lora_alpha=2 * r,
        scale=2.0,
        init="default",
        learning_rate=3e-4,
        peft_class="LoraConfig",
        peft_arguments={"r": r, "lora_alpha": 2 * r, "target_modules": list(targets), **arguments},
        optimizer={},
        num_parameters=0,
    )


@pytest.mark.parametrize("make", [llama, gemma, gpt2, bert])
def test_every_route_equals_the_dense_matrix_on_real_architectures(make):
    from peft import LoraConfig, get_peft_model

    model, targets = build(make)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=list(targets), init_lora_weights=False)).double()
    logits = LabelLogits(adapted, batch(make)).eval()
    truth = np.linalg.eigvalsh(reference.gauss_newton(logits))[-1]
    for kind in ROUTES:
        found = largest_curvature(logits, route=kind.route, products=60, tolerance=1e-6)
        assert found.value == pytest.approx(truth, rel=1e-3 if kind is Differences else 1e-6), kind.route
        assert abs(found.value - truth) <= found.error + 1e-9 * truth
        assert found.error < 1e-2 * truth


@pytest.mark.parametrize("make", [llama, gpt2, bert])
def test_logits_are_those_at_the_labels(make):
    model, _ = build(make)
    given = batch(make)
    inputs = {name: tensor for name, tensor in given.items() if name != "labels"}
    everywhere = model(**inputs).logits
    if make is bert:
        wanted = everywhere[[0, 2]]
    else:
        wanted = everywhere[:, :-1][given["labels"][:, 1:] != -100]
    torch.testing.assert_close(LabelLogits(model, given)(), wanted)


def test_the_adapters_curvature_is_taken_at_its_start_and_the_base_is_left_as_it_was():
    model, targets = build(llama, torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.requires_grad_(False)
    model.lm_head.weight.requires_grad_(True)
    plain = adapter_curvature(model, adapter(targets), batch(llama))
    pissa = adapter_curvature(model, adapter(targets, init_lora_weights="pissa"), batch(llama))
    assert plain.route == pissa.route == "forward mode"
    assert plain.parameters == pissa.parameters == 2 * 2 * (16 + 16 + 24 + 16)
    assert abs(pissa.value - plain.value) > 3 * (pissa.error + plain.error)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [name for name, parameter in model.named_parameters() if parameter.requires_grad] == [
        "model.embed_tokens.weight" if model.config.tie_word_embeddings else "lm_head.weight"
    ]


def test_twice_the_scale_is_four_times_the_curvature_while_b_is_zero():
    """At B = 0 only B moves the logits, by s A x: the matrix is proportional to s^2."""
    model, targets = build(llama)
    one = adapter_curvature(model, adapter(targets), batch(llama), products=40)
    two = adapter_curvature(model, adapter(targets, lora_alpha=8), batch(llama), products=40)
    assert two.value == pytest.approx(4 * one.value, rel=1e-3)


def test_start_factors_are_loaded(tmp_path):
    from safetensors.torch import save_file

    model, targets = build(llama)
    factors = {}
    for name, module in model.named_modules():
        if name.endswith(targets):
            m, n = module.weight.shape
            factors[f"{name}.lora_A"], factors[f"{name}.lora_B"] = 0.1 * torch.ones(2, n), torch.zeros(m, 2)
    save_file(factors, tmp_path / "start", metadata={"subtract_from_base": "false"})
    found = adapter_curvature(model, adapter(targets), batch(llama), initial_factors=tmp_path / "start")
    assert found.value != pytest.approx(adapter_curvature(model, adapter(targets), batch(llama)).value, rel=1e-2)


def test_a_folder_is_loaded(tiny_model_folder):
    found = adapter_curvature(tiny_model_folder, adapter(("q_proj", "v_proj")), batch(llama))
    assert found.value > 0
    assert found.error <= 0.011 * found.value


def test_all_labels_masked():
    model, targets = build(llama)
    masked = {**batch(llama), "labels": torch.full((3, 9), -100)}
    with pytest.raises(InputError, match="none of the microbatch's tokens is a label"):
        adapter_curvature(model, adapter(targets), masked)
