"""The chunked loss is the textbook's, its gradient is autograd's, and heads it cannot stand in for keep their own."""

import pytest
import torch
from torch import nn
from torch.nn import functional
from training_jobs import rows

from lora_select import models
from lora_select.data.labels.tokens import TokenRow, collate, label_loss
from lora_select.training.worker import loss, packing


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_equal_the_dense_loss_and_gradient(dtype, bias, monkeypatch):
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 260 * 20)  # 70 rows in four chunks, the last one short
    torch.manual_seed(0)
    hidden = torch.randn(70, 32).to(dtype).requires_grad_()
    weight, added = torch.randn(260, 32).to(dtype), torch.randn(260).to(dtype) if bias else None
    targets = torch.randint(0, 260, (70,))
    found = loss.summed_loss(hidden, weight, targets, added)
    (gradient,) = torch.autograd.grad(3 * found, hidden)

    exact = hidden.detach().double().requires_grad_()
    logits = functional.linear(exact, weight.double(), added.double() if bias else None)
    wanted = functional.cross_entropy(logits, targets, reduction="sum")
    (reference,) = torch.autograd.grad(3 * wanted, exact)
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    torch.testing.assert_close(found.double(), wanted, rtol=tolerance, atol=0)
    assert (gradient.double() - reference).norm() < tolerance * reference.norm()


def test_all_logits_are_never_held(monkeypatch):
    sizes = []
    plain = functional.linear

    def watched(*arguments):
        sizes.append(len(arguments[0]))
        return plain(*arguments)

    monkeypatch.setattr(functional, "linear", watched)
    monkeypatch.setattr(loss, "CHUNK_ELEMENTS", 1000 * 64)
    loss.summed_loss(torch.randn(200, 8), torch.randn(1000, 8), torch.zeros(200, dtype=torch.int64))
    assert sizes == [64, 64, 64, 8]


def test_the_head_gives_logits_unless_targets_are_set(tiny_model_folder):
    model = models.load_model(str(tiny_model_folder)).requires_grad_(False)
    ids = torch.tensor([[5, 6, 7]])
    before = model(ids).logits
    assert loss.enable(model)
    assert torch.equal(model(ids).logits, before)


def test_prompt_only_and_padded_batches_keep_their_loss(tiny_model_folder):
    model = models.load_model(str(tiny_model_folder)).requires_grad_(False)
    assert loss.enable(model)
    assert packing.refusal(model.requires_grad_(True), 260) is None
    empty = packing.collate_packed([TokenRow("a", (5, 6), (False, False))])
    assert loss.training_loss(model, empty).item() == 0
    padded = collate(rows(7), 3)  # prompts of different lengths: some rows have no label where others have one
    torch.testing.assert_close(loss.training_loss(model, padded), label_loss(model, padded)[0].sum())


def test_a_scale_after_the_head_is_noticed():
    import transformers

    config = transformers.CohereConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, logit_scale=0.1,
        pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model = transformers.CohereForCausalLM(config).requires_grad_(False)
    assert not loss.enable(model)
    assert type(model.get_output_embeddings()) is nn.Linear
    packed = packing.collate_packed(rows(3))
    torch.testing.assert_close(loss.training_loss(model, packed), label_loss(model, packed)[0].sum())


def test_a_trained_head_keeps_its_own_gradient(tiny_model_folder):
    model = models.load_model(str(tiny_model_folder))
    assert not loss.enable(model)
