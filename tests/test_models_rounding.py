"""GGUF's simple types by their definition: blocks of 32 along a row, one scale in 16 bits each."""

import pytest
import torch

from lora_select import models
from lora_select.models import rounding


def blocks(weight):
    return weight.reshape(-1, 32)


def q8_0(weight):
    """d = max |x| / 127, q = round(x / d)."""
    scale = blocks(weight).abs().amax(1, keepdim=True) / 127
    return (torch.round(blocks(weight) / scale) * scale.half().float()).reshape(weight.shape)


def q4_0(weight):
    """d = the weight of the largest modulus, with its sign, / -8; q = floor(x / d + 8.5), at most 15."""
    part = blocks(weight)
    scale = part.gather(1, part.abs().argmax(1, keepdim=True)) / -8
    level = torch.floor(part / scale + 8.5).clamp(0, 15)
    return ((level - 8) * scale.half().float()).reshape(weight.shape)


@pytest.mark.parametrize(("form", "rule"), [("q8_0", q8_0), ("q4_0", q4_0)])
def test_a_matrix_is_rounded_block_by_block(form, rule):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(rounding.rounded(weight, form), rule(weight), rtol=0, atol=1e-6)


@pytest.mark.parametrize("form", rounding.GGUF_FORMS)
def test_rounding_again_changes_little_and_narrow_rows_stay_in_sixteen_bits(form):
    weight = torch.randn(4, 64, generator=torch.Generator().manual_seed(1))
    once = rounding.rounded(weight, form)
    assert 0 < (once - weight).abs().max() < 0.5
    assert (rounding.rounded(once, form) - once).abs().max() <= 0.1 * (once - weight).abs().max()
    narrow = weight[:, :40].contiguous()
    assert torch.equal(rounding.rounded(narrow, form), narrow.half().float())


def test_norms_stay_and_the_head_has_eight_bits(tiny_model_folder):
    model, plain = models.load_model(str(tiny_model_folder)), models.load_model(str(tiny_model_folder))
    rounding.round_weights(model, "q4_0")
    was = dict(plain.named_parameters())
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, was[name])
        assert same == (parameter.ndim == 1), name
    assert torch.equal(
        model.get_output_embeddings().weight, rounding.rounded(plain.get_output_embeddings().weight, "q8_0")
    )
