from dataclasses import replace

import contract
import pytest
import starts_contract
import torch

from lora_select.variants.orthogonal import Orthogonal


def test_contract(tmp_path):
    starts_contract.check_trained(Orthogonal(4))
    contract.check_reload(Orthogonal(4), tmp_path)
    contract.check_sentences(Orthogonal(4))


def test_the_start_is_the_base_to_the_rounding_of_its_float32_factors():
    x = torch.randn(5, contract.N, dtype=torch.float64)
    model = contract.build(Orthogonal(4))
    assert model.base_model.model.projection.lora_B["default"].weight.abs().max() > 0
    torch.testing.assert_close(model(x), contract.Base()(x), rtol=1e-5, atol=1e-6)


def test_refused_where_it_fails():
    assert any("r 3 is odd; use 4" in s for s in Orthogonal(3).violations(contract.FREE))
    assert any("int8" in s for s in Orthogonal(4).violations(replace(contract.FREE, quantized_base="int8")))
    with pytest.raises(ValueError, match="even"):
        contract.build(Orthogonal(3))
