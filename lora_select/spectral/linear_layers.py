"""Which layers are measured, and the plain (m, n) weight behind each kind of them."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

HEADS = ("lm_head", "embed_out", "score", "classifier", "qa_outputs")
"""Output layers, never adapted: their gradient spectra say nothing about the others."""


def is_linear(module: nn.Module) -> bool:
    """`nn.Linear` and what derives from it (quantised ones too), and the transposed `Conv1D` of GPT-2 in transformers."""
    return isinstance(module, nn.Linear) or _is_conv1d(module)


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Every linear layer of the model by name, but the output layer; a module under two names is counted once."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and name.rpartition(".")[2] not in HEADS
    }


def left_out(model: nn.Module, layers: Mapping[str, nn.Module]) -> dict[str, str]:
    """What of the model's weights cannot be measured, by name, each with the reason.

    Weights that another layer holds too are counted once, under the first name; expert weights in one three-dimensional tensor
    have a gradient per expert, which the pass does not separate; weights that were offloaded are not there to be decomposed.
    """
    reasons: dict[str, str] = {}
    holders: dict[int, str] = {}
    for name, module in layers.items():
        weight = module.weight
        if not isinstance(weight, Tensor):
            continue
        if weight.device.type == "meta":
            reasons[name] = "its weight is offloaded (on the meta device); load the model without offloading it"
        elif id(weight) in holders:
            reasons[name] = f"shares its weight with {holders[id(weight)]}, where it is counted"
        else:
            holders[id(weight)] = name
    for name, parameter in model.named_parameters():
        if parameter.ndim == 3 and "conv" not in name:
            shape = " x ".join(map(str, parameter.shape))
            what = "expert weights in one tensor" if "expert" in name else "a tensor of three dimensions"
            reasons[name] = f"{what} ({shape}): only two-dimensional layers are measured"
    return reasons


def fused_experts(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Expert weights in one three-dimensional tensor: name -> shape."""
    return {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim == 3 and "expert" in name}


def nothing_matched(model: nn.Module) -> str:
    """The sentence for a model without any layer to measure."""
    kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
    return (
        f"{type(model).__name__} has no nn.Linear layer besides its output layer, so there is nothing to measure or adapt; "
        f"its layers are {', '.join(kinds)}"
    )


def plain_weight(module: nn.Module) -> Tensor:
    """W (m, n) = (out, in) of a linear layer, detached, in a floating type.

    A quantised weight is not a matrix to be read; it is recovered by sending the identity through the layer.
    """
    weight = module.weight
    assert isinstance(weight, Tensor)
    if _is_conv1d(module):
        return weight.detach().T
    if weight.is_floating_point() and weight.ndim == 2 and weight.shape == (module.out_features, module.in_features):
        return weight.detach()
    identity = torch.eye(int(module.in_features), device=weight.device)  # pyright: ignore[reportArgumentType]
    with torch.no_grad():
        seen = module(identity)
        return (seen if module.bias is None else seen - module.bias).T.float()  # pyright: ignore[reportOperatorIssue]


def shape_of(module: nn.Module) -> tuple[int, int]:
    """(m, n) = (out, in)."""
    if _is_conv1d(module):
        weight = module.weight
        assert isinstance(weight, Tensor)
        return weight.shape[1], weight.shape[0]
    return int(module.out_features), int(module.in_features)  # pyright: ignore[reportArgumentType]


def _is_conv1d(module: nn.Module) -> bool:
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")
