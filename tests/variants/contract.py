"""What every variant must do; PEFT's real layers in float64 are the reference. Each variant's test file calls these."""

from dataclasses import replace
from pathlib import Path

import torch
from laws import check_adjoint, check_dense
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lora_select.variant import Context, Variant

M, N = 6, 9
FREE = Context(
    serve=None,
    must_merge=False,
    quantized_base=None,
    allow_modified_base=True,
    zero_stage=0,
    narrowest=64,
    narrowest_layer="layers.0.q_proj",
    directions=32,
)


class Base(nn.Module):
    """A model of one linear layer."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.projection = nn.Linear(N, M, bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.projection.weight.copy_(torch.randn(M, N, generator=generator, dtype=torch.float64))

    def forward(self, x):
        return self.projection(x)


def build(variant: Variant):
    """PEFT's model for the variant, in float64, at PEFT's own start."""
    import peft

    arguments = variant.peft_arguments() | {"target_modules": ["projection"]}
    config = getattr(peft, variant.peft_class)(**arguments)
    return peft.get_peft_model(Base(), config, autocast_adapter_dtype=False).double()


def theta_of(model, variant: Variant) -> dict[str, Tensor]:
    """What PEFT's layer holds by the names in `trained` and `frozen`."""
    layer = model.base_model.model.projection
    return {name: tensor_of(layer, name) for name in (*variant.trained, *variant.frozen)}


def tensor_of(layer, name: str) -> Tensor:
    """The tensor that the adapter `default` keeps under this name in PEFT's layer."""
    held = getattr(layer, name)["default"]
    return held.weight if isinstance(held, nn.Module) else held


def trained_of(model, variant: Variant) -> dict[str, Tensor]:
    """The trained part of theta, checked to be all that PEFT trains."""
    theta = theta_of(model, variant)
    trained = {name: theta[name] for name in variant.trained}
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    return trained


def scramble(model) -> None:
    """Move every trained parameter away from its start, so that no term of the tangent is zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def check_count(variant: Variant) -> None:
    """The parameter count is PEFT's."""
    model = build(variant)
    trained = trained_of(model, variant)
    assert variant.num_parameters((M, N)) == sum(p.numel() for p in trained.values())
    operator = variant.tangent(model.base_model.model.projection.weight.detach(), theta_of(model, variant))
    assert {name: tuple(p.shape) for name, p in trained.items()} == operator.parameter_shapes


def check_function(variant: Variant) -> None:
    """PEFT's layer computes x W(theta)^T, away from the start."""
    model = build(variant)
    scramble(model)
    weight = model.base_model.model.projection.get_base_layer().weight
    x = torch.randn(5, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(
        x @ variant.weight_of(weight, theta_of(model, variant)).T, model(x), rtol=1e-10, atol=1e-12
    )


def check_gradient(variant: Variant, *, at_start: bool) -> None:
    """J^T G equals the gradient that autograd takes through PEFT's layer, at the start and away from it."""
    model = build(variant)
    if not at_start:
        scramble(model)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(11, N, generator=generator, dtype=torch.float64)
    d = torch.randn(11, M, generator=generator, dtype=torch.float64)
    theta, trained = theta_of(model, variant), trained_of(model, variant)
    expected = torch.autograd.grad((model(x) * d).sum(), list(trained.values()))
    weight = model.base_model.model.projection.get_base_layer().weight.detach()
    operator = variant.tangent(weight, {name: p.detach() for name, p in theta.items()})
    found = operator.rmatvec(d.T @ x)
    for name, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=1e-10, atol=1e-12)
    check_adjoint(operator)
    check_dense(operator)


def check_start(variant: Variant) -> None:
    """At PEFT's start the function is the base's."""
    x = torch.randn(5, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    torch.testing.assert_close(build(variant)(x), Base()(x), rtol=1e-12, atol=1e-12)


def check_reload(variant: Variant, folder: Path, factors: dict[str, Tensor] | None = None) -> None:
    """Saved and reloaded on the pristine base, the function is the trained one.

    `factors` (`lora_A`, `lora_B`) are loaded over PEFT's start; for starts that change the base, see test_pissa.
    """
    import peft

    model = build(variant)
    if factors is not None:
        layer = model.base_model.model.projection
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(factors["lora_A"])
            layer.lora_B["default"].weight.copy_(factors["lora_B"])
    scramble(model)
    x = torch.randn(5, N, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    model.save_pretrained(str(folder))
    again = peft.PeftModel.from_pretrained(Base(), str(folder), autocast_adapter_dtype=False).double()
    torch.testing.assert_close(again(x), model(x), rtol=1e-12, atol=1e-12)


def check_sentences(variant: Variant) -> None:
    """No violation where nothing is asked; each sentence holds the rule and the value."""
    assert variant.violations(FREE) == ()
    narrow = variant.violations(replace(FREE, narrowest=2))
    assert any(f"r {variant.r}" in s and "2" in s and "layers.0.q_proj" in s for s in narrow)
    merged = variant.violations(replace(FREE, must_merge=True, quantized_base="nf4"))
    assert any("nf4" in s and "re-quantises" in s for s in merged)


def check_all(variant: Variant, folder: Path) -> None:
    """The whole contract of a variant whose start leaves the base alone."""
    check_count(variant)
    check_function(variant)
    check_gradient(variant, at_start=True)
    check_gradient(variant, at_start=False)
    check_start(variant)
    check_reload(variant, folder)
    check_sentences(variant)


def exported(folder: Path, start: dict[str, Tensor], scale: float) -> dict[str, Tensor]:
    """The factors of rank 2r that equal base - s B0 A0 + s B A on the pristine base: [A; A0], [B, -B0]."""
    trained = load_file(folder / "adapter_model.safetensors")
    joined = {}
    for name, tensor in trained.items():
        if "lora_A" in name:
            joined[name] = torch.cat([tensor, start["lora_A"].to(tensor)], 0).contiguous()
        else:
            joined[name] = torch.cat([tensor, -start["lora_B"].to(tensor)], 1).contiguous()
    assert scale == 1.0
    save_file(joined, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return joined
