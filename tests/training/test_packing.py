"""Packed rows give the loss and the gradients of single rows, or the architecture is refused with the reason."""

import dataclasses
import itertools

import pytest
import torch
import transformers
from training_jobs import MODULES, plan, rows

from lora_select.data.labels.tokens import TokenRow, collate, label_loss
from lora_select.training.worker import batches, loss, packing

SIZES = {
    "vocab_size": 260, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
WINDOWS = {"head_dim": 8, "sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}
FAMILIES = {"Llama": {}, "Qwen2": {}, "Qwen3": {"head_dim": 8}, "Mistral": {"sliding_window": 4}, "Gemma3": WINDOWS}


def tiny(family, dtype=torch.float64, implementation="sdpa", **changes):
    torch.manual_seed(0)
    name = f"{family}TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**SIZES | changes)
    return (
        getattr(transformers, f"{family}ForCausalLM")._from_config(config, attn_implementation=implementation).to(dtype)
    )


def adapted(base):
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules=list(MODULES), init_lora_weights=False, task_type="CAUSAL_LM")
    return get_peft_model(base, config).double()


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_equals_padded_by_logits_loss_and_gradients(family):
    model = adapted(tiny(family, **FAMILIES[family]))
    made = rows(6)
    padded = collate(made, pad_id=0)
    trained = [p for p in model.parameters() if p.requires_grad]
    logits = model(input_ids=padded["input_ids"], attention_mask=padded["attention_mask"]).logits
    wanted = label_loss(model, padded)[0].sum()
    gradients = torch.autograd.grad(wanted, trained)

    assert packing.refusal(model, 260) is None
    packed = packing.collate_packed(made)
    inputs = {name: value for name, value in packed.items() if name != "labels"}
    found = model(**inputs, use_cache=False).logits[0]
    bounds = itertools.pairwise(packed["cu_seq_lens_q"].tolist())
    for number, (low, high) in enumerate(bounds):
        torch.testing.assert_close(found[low:high], logits[number, : high - low], rtol=1e-9, atol=1e-10)
    assert loss.enable(model)
    total = loss.training_loss(model, packed)
    torch.testing.assert_close(total, wanted, rtol=1e-10, atol=0)
    for ours, theirs in zip(torch.autograd.grad(total, trained), gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_equal_with_gradient_checkpointing_in_float32(checkpointing):
    model = adapted(tiny("Llama")).float().train()
    if checkpointing:
        model.gradient_checkpointing_enable()
        model.enable_input_require_grads()
    assert packing.refusal(model, 260) is None
    assert loss.enable(model)
    made = rows(6)
    trained = [p for p in model.parameters() if p.requires_grad]
    packed = torch.autograd.grad(loss.training_loss(model, packing.collate_packed(made)), trained)
    padded = torch.autograd.grad(label_loss(model, collate(made, 0))[0].sum(), trained)
    for ours, theirs in zip(packed, padded, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("family", ["Falcon", "OPT"])
def test_architectures_that_leak_or_ignore_positions_are_refused(family):
    extra = {"word_embed_proj_dim": 32, "ffn_dim": 48} if family == "OPT" else {}
    model = tiny(family, **extra)
    reason = packing.refusal(model, 260)
    assert reason is not None
    assert "padded, not packed" in reason
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_fails_on_packed_rows_is_refused(monkeypatch):
    def fails(*arguments):
        raise TypeError("unexpected keyword argument 'cu_seq_lens_q'")

    model = tiny("Llama")
    monkeypatch.setattr(packing, "largest_difference", fails)
    assert "does not take packed rows (unexpected keyword" in (packing.refusal(model, 260) or "")


def test_rows_that_see_one_another_are_noticed(monkeypatch):
    model = adapted(tiny("Llama", torch.float32)).float()
    monkeypatch.setattr(packing, "_blocks", lambda mask, bounds: [(0, int(bounds[-1]), None)])
    assert "differ by" in (packing.refusal(model, 260) or "")


def test_packed_rows_with_a_cache_are_an_error_and_not_a_leak():
    model = tiny("Llama")
    assert packing.refusal(model, 260) is None
    inputs = {name: value for name, value in packing.collate_packed(rows(3)).items() if name != "labels"}
    with pytest.raises(ValueError, match="use_cache=False"):
        model(**inputs)


def test_the_check_leaves_no_trace():
    model = adapted(tiny("Llama")).train()
    state = torch.get_rng_state()
    assert packing.refusal(model, 260) is None
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


def test_positions_restart_and_first_tokens_are_no_labels():
    made = packing.collate_packed([TokenRow("a", (5, 6), (True, True)), TokenRow("b", (7, 8, 9), (True, False, True))])
    assert made["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert made["labels"].tolist() == [[-100, 6, -100, -100, 9]]
    assert made["cu_seq_lens_q"].tolist() == [0, 2, 5]


@pytest.mark.parametrize(("ranks", "accumulation"), [(1, 1), (2, 1), (2, 3), (4, 2)])
@pytest.mark.parametrize("count", [1, 5, 24])
def test_packed_rows_are_dealt_out_whole_and_evenly(ranks, accumulation, count):
    dealt = batches.packed_micro_batches(rows(count), ranks, accumulation)
    parts = [part for one in dealt for part in one]
    assert sorted(row.row_id for part in parts for row in part) == sorted(row.row_id for row in rows(count))
    tokens = [sum(len(row.input_ids) for row in part) for part in parts]
    longest = max(len(row.input_ids) for row in rows(count))
    assert max(tokens) <= sum(tokens) / len(parts) + longest
    assert (min(tokens) > 0) == (count >= len(parts))


@pytest.mark.parametrize("packed", [False, True])
def test_the_heaviest_micro_batch_is_the_heaviest(packed):
    made, told = rows(45), plan(total_steps=6, packing=packed)
    sizes = []
    for step in range(told.total_steps):
        numbers = batches.rows_of_step(45, told.epochs, told.effective_batch_size, told.seed, step)
        dealt = batches.dealt([made[number] for number in numbers], told)
        sizes += [batches.held_tokens(part, packed) for parts in dealt for part in parts]
    assert batches.held_tokens(batches.heaviest(made, told), packed) == max(sizes)
    one = dataclasses.replace(told, total_steps=1)
    assert batches.held_tokens(batches.heaviest(made, one), packed) == max(sizes[:2])
