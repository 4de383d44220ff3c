"""What every variant must do; PEFT's real layers in float64 are the reference. Each variant's test file calls these."""

from dataclasses import replace
from pathlib import Path

import torch
from laws import check_adjoint, check_dense
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_jobs import plan, spec

from lora_select.training.worker.optimizer import make_optimizer, scheduled
from lora_select.training.zero import UNSPLIT_ONLY
from lora_select.variants.base import Context, Variant, has_rank

SHAPES = ((6, 9), (9, 6))
M, N = SHAPES[0]
FREE = Context(
    serve=None,
    must_merge=False,
    quantized_base=None,
    allow_modified_base=True,
    zero_stage=0,
    narrowest=64,
    narrowest_layer="layers.0.q_proj",
    directions=32,
    layers=(("layers.0.q_proj", 768, 768),),
)


class Base(nn.Module):
    """A model of one linear layer (m, n) in float64; its weights are float32 numbers, so that either precision holds them."""

    def __init__(self, shape: tuple[int, int] = (M, N)):
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        self.config = {"tie_word_embeddings": False}  # PEFT asks; there is none
        self.projection = nn.Linear(shape[1], shape[0], bias=False, dtype=torch.float64)
        with torch.no_grad():
            self.projection.weight.copy_(torch.randn(*shape, generator=generator))

    def forward(self, x):
        return self.projection(x)


def build(variant: Variant, shape: tuple[int, int] = (M, N), seed: int = 0, **drawn):
    """PEFT's model for the variant at PEFT's own start, drawn on a float32 base as some starts demand, then in float64."""
    import peft

    torch.manual_seed(seed)
    arguments = scheduled(variant.peft_arguments(), plan()) | {"target_modules": ["projection"]} | drawn
    config = getattr(peft, variant.peft_class)(**arguments)
    model = peft.get_peft_model(Base(shape).float(), config, autocast_adapter_dtype=False).double()
    settled(model, variant)
    return model


def settled(model, variant: Variant):
    """The variant's own optimizer: LoRA-FA's is what freezes A."""
    told = spec(variant=variant.name, r=variant.r, lora_alpha=variant.lora_alpha, optimizer=variant.optimizer)
    return make_optimizer(model, told, plan())


def layer_of(model):
    """PEFT's layer."""
    return model.base_model.model.projection


def theta_of(model, variant: Variant) -> dict[str, Tensor]:
    """What PEFT's layer holds by the names in `trained` and `frozen`, as far as this shape has it."""
    found = {name: tensor_of(layer_of(model), name) for name in (*variant.trained, *variant.frozen)}
    return {name: tensor for name, tensor in found.items() if tensor is not None}


def tensor_of(layer, name: str) -> Tensor | None:
    """The tensor that the adapter `default` keeps under this name in PEFT's layer; `a.b` is b of its part a."""
    head, _, inner = name.partition(".")
    per_adapter = getattr(layer, head)
    if "default" not in per_adapter:
        return None
    held = per_adapter["default"]
    if inner:
        held = held[inner] if isinstance(held, nn.ParameterDict) else getattr(held, inner)
    return held.weight if isinstance(held, nn.Module) else held


def trained_of(model, variant: Variant) -> dict[str, Tensor]:
    """The trained part of theta, checked to be all that PEFT trains."""
    theta = theta_of(model, variant)
    trained = {name: theta[name] for name in variant.trained if name in theta}
    assert {id(p) for p in model.parameters() if p.requires_grad} == {id(p) for p in trained.values()}
    return trained


def scramble(model) -> None:
    """Move every trained parameter away from its start, so that no term of the tangent is zero."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)


def inputs(shape: tuple[int, int], rows: int = 5) -> Tensor:
    return torch.randn(rows, shape[1], generator=torch.Generator().manual_seed(2), dtype=torch.float64)


def check_count(variant: Variant, shape: tuple[int, int] = (M, N)) -> None:
    """The parameter count and the names are PEFT's."""
    model = build(variant, shape)
    trained = trained_of(model, variant)
    assert variant.num_parameters(shape) + variant.shared_parameters == sum(p.numel() for p in trained.values())
    operator = variant.tangent(layer_of(model).get_base_layer().weight.detach(), theta_of(model, variant))
    assert {name: tuple(p.shape) for name, p in trained.items()} == operator.parameter_shapes


def check_function(variant: Variant, shape: tuple[int, int] = (M, N), rtol: float = 1e-10) -> None:
    """PEFT's layer computes x W(theta)^T, away from the start."""
    model = build(variant, shape)
    scramble(model)
    weight = layer_of(model).get_base_layer().weight
    x = inputs(shape)
    found = x @ variant.weight_of(weight, theta_of(model, variant)).T
    torch.testing.assert_close(found, model(x), rtol=rtol, atol=rtol)


def check_gradient(variant: Variant, *, at_start: bool, shape: tuple[int, int] = (M, N), rtol: float = 1e-10) -> None:
    """J^T G equals the gradient that autograd takes through PEFT's layer, at the start and away from it."""
    model = build(variant, shape)
    if not at_start:
        scramble(model)
    x = inputs(shape, 11)
    d = torch.randn(11, shape[0], generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    theta, trained = theta_of(model, variant), trained_of(model, variant)
    expected = torch.autograd.grad((model(x) * d).sum(), list(trained.values()), materialize_grads=True)
    weight = layer_of(model).get_base_layer().weight.detach()
    operator = variant.tangent(weight, {name: p.detach() for name, p in theta.items()})
    found = operator.rmatvec(d.T @ x)
    for name, gradient in zip(trained, expected, strict=True):
        torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=0.01 * rtol * float(1 + gradient.abs().max()))
    check_adjoint(operator)
    check_dense(operator)


def check_start(variant: Variant, shape: tuple[int, int] = (M, N)) -> None:
    """At PEFT's start, drawn in float32, the function is the base's, or moved a little where the variant says so."""
    x = inputs(shape)
    base = Base(shape)(x)
    moved = float((build(variant, shape)(x) - base).detach().abs().max())
    assert variant.starts_at_base == (moved <= 1e-6), moved


def check_reload(variant: Variant, folder: Path, factors: dict[str, Tensor] | None = None) -> None:
    """Saved and reloaded on the pristine base, the function is the trained one.

    `factors` (`lora_A`, `lora_B`) are loaded over PEFT's start; for starts that change the base, see test_pissa.
    """
    import peft

    model = build(variant)
    if factors is not None:
        with torch.no_grad():
            for name, value in factors.items():
                getattr(layer_of(model), name)["default"].weight.copy_(value)
    scramble(model)
    x = inputs((M, N))
    model.save_pretrained(str(folder))
    torch.manual_seed(99)  # what a start draws must not matter
    again = peft.PeftModel.from_pretrained(Base().float(), str(folder), autocast_adapter_dtype=False)
    torch.testing.assert_close(again.double()(x), model(x), rtol=1e-5, atol=1e-5)


def check_merge(variant: Variant) -> None:
    """Merged, the weight is W(theta); where PEFT cannot, `support` says so."""
    model = build(variant)
    scramble(model)
    x = inputs((M, N))
    expected = model(x).detach()
    if not variant.support.merge:
        return
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(x), expected, rtol=1e-6, atol=1e-6)


def check_sentences(variant: Variant) -> None:
    """No violation where nothing is asked; each sentence holds the rule and the value."""
    assert variant.violations(FREE) == ()
    merged = variant.violations(replace(FREE, must_merge=True, quantized_base="nf4"))
    assert any("nf4" in s and "re-quantises" in s for s in merged)
    served = variant.violations(replace(FREE, serve="vllm"))
    assert any(variant.name in s and "vLLM" in s for s in served) != (
        variant.support.plain_lora or variant.support.low_rank
    )
    for base, fault in (("nf4", variant.support.nf4), ("int8", variant.support.int8)):
        said = variant.violations(replace(FREE, quantized_base=base))
        assert not fault or any(variant.name in s and base in s and fault in s for s in said)
    split = variant.violations(replace(FREE, zero_stage=3))
    assert any(variant.name in s and "needs whole factors" in s for s in split) == (
        variant.optimizer.get("name") in UNSPLIT_ONLY
    )


def check_rank_sentence(variant: Variant) -> None:
    """A rank above the narrowest side is refused, with both numbers and the layer."""
    narrow = variant.violations(replace(FREE, narrowest=2))
    assert any(f"r {variant.r}" in s and "2" in s and "layers.0.q_proj" in s for s in narrow)


def check_indivisible(variant: Variant, shape: tuple[int, int] = (7, 11)) -> None:
    """A layer that the block size does not divide is refused by name, before PEFT fails or silently adjusts."""
    said = variant.violations(replace(FREE, layers=(("layers.3.odd_proj", *shape),)))
    assert any("layers.3.odd_proj" in s and "does not divide" in s for s in said)


def check_all(variant: Variant, folder: Path, rtol: float = 1e-10, shapes=SHAPES) -> None:
    """The whole contract of a variant whose start leaves the base alone, on a wide and on a tall layer.

    `rtol` is for what PEFT computes in float32 whatever its parameters are.
    """
    for shape in shapes:
        check_count(variant, shape)
        check_function(variant, shape, rtol)
        check_gradient(variant, at_start=True, shape=shape, rtol=rtol)
        check_gradient(variant, at_start=False, shape=shape, rtol=rtol)
        check_start(variant, shape)
    check_reload(variant, folder)
    check_merge(variant)
    check_sentences(variant)
    assert has_rank(type(variant)) == bool(variant.r)


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
