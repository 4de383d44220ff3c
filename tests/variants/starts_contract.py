"""What every variant with a start of its own must do: a variant contract in which factors are loaded over PEFT's."""

from dataclasses import replace

import contract
import torch


def check_trained(variant) -> None:
    """Counts, function and gradient are those of PEFT's layer."""
    contract.check_count(variant)
    contract.check_gradient(variant, at_start=True)
    contract.check_gradient(variant, at_start=False)
    contract.check_function(variant)


def start(model, variant, a, b, *, subtract: bool):
    """Load factors over PEFT's start and, for a start that changes the base, take their product off it."""
    layer = model.base_model.model.projection
    with torch.no_grad():
        layer.lora_A["default"].weight.copy_(a)
        layer.lora_B["default"].weight.copy_(b)
        if subtract:
            layer.get_base_layer().weight -= variant.scale * b.double() @ a.double()


def check_changed_base(variant, a, b) -> None:
    """The start changes the base and not the function, and is refused where the base cannot change; ZeRO-3 is no hindrance."""
    model = contract.build(variant)
    start(model, variant, a, b, subtract=True)
    x = torch.randn(5, contract.N, dtype=torch.float64)
    torch.testing.assert_close(model(x), contract.Base()(x), rtol=1e-12, atol=1e-12)
    assert variant.export_rank_factor == 2
    assert variant.violations(contract.FREE) == ()
    assert any(
        "allow_modified_base" in s for s in variant.violations(replace(contract.FREE, allow_modified_base=False))
    )
    assert any("nf4" in s for s in variant.violations(replace(contract.FREE, quantized_base="nf4")))
    assert variant.violations(replace(contract.FREE, zero_stage=3)) == ()
