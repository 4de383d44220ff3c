import json
from dataclasses import replace

import contract
import torch

from lora_select.initialization.linalg import principal_factors
from lora_select.variants.pissa import PiSSA

VARIANT = PiSSA(3)


def test_contract():
    contract.check_count(VARIANT)
    contract.check_gradient(VARIANT, at_start=True)
    contract.check_gradient(VARIANT, at_start=False)
    contract.check_sentences(VARIANT)


def start(model):
    """Factors loaded over PEFT's plain start, and their product taken off the base, as the worker does."""
    layer = model.base_model.model.projection
    a, b = principal_factors(layer.get_base_layer().weight.detach(), VARIANT.r, VARIANT.scale)
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
        layer.get_base_layer().weight -= VARIANT.scale * b.double() @ a.double()
    return {"lora_A": a, "lora_B": b}


def test_start_does_not_change_the_function():
    model = contract.build(VARIANT)
    start(model)
    x = torch.randn(5, contract.N, dtype=torch.float64)
    torch.testing.assert_close(model(x), contract.Base()(x), rtol=1e-12, atol=1e-12)


def test_exported_at_twice_the_rank_it_fits_the_pristine_base(tmp_path):
    import peft

    model = contract.build(VARIANT)
    factors = start(model)
    contract.scramble(model)
    model.save_pretrained(str(tmp_path))
    contract.exported(tmp_path, factors, VARIANT.scale)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    config |= {"r": 2 * VARIANT.r, "lora_alpha": 2 * VARIANT.lora_alpha}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    again = peft.PeftModel.from_pretrained(contract.Base(), str(tmp_path), autocast_adapter_dtype=False).double()
    x = torch.randn(5, contract.N, dtype=torch.float64)
    torch.testing.assert_close(again(x), model(x), rtol=1e-10, atol=1e-10)
    assert VARIANT.export_rank_factor == 2


def test_refused_where_the_base_cannot_change():
    assert any(
        "allow_modified_base" in s for s in VARIANT.violations(replace(contract.FREE, allow_modified_base=False))
    )
    assert any("nf4" in s for s in VARIANT.violations(replace(contract.FREE, quantized_base="nf4")))
    assert VARIANT.violations(replace(contract.FREE, zero_stage=3)) == ()
    served = replace(contract.FREE, serve="vllm", narrowest=4096)
    assert any("exports 600" in s for s in PiSSA(300).violations(served))
