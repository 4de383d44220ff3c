"""What a trained adapter adds to each weight, whatever its kind: PEFT's own merge in float64, less the pristine weight."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from lora_select.errors import InputError
from lora_select.serving.folder import PREFIX

if TYPE_CHECKING:
    from torch import Tensor


def updates(model: Any, pristine: Any = None) -> "Iterator[tuple[str, Tensor]]":
    """Each adapted layer's name in the base model and its update dW (m, n), float64; the model is left as it was.

    Args:
        model: a PEFT model on the pristine base, in evaluation mode.
        pristine: the base once more, where PEFT took the adapter's start off the weights that `model` holds.

    Raises:
        InputError: the adapter cannot be merged, or also changes a bias, which no LoRA can.
    """
    for name, layer in adapted_layers(model):
        base = layer.get_base_layer()
        kept = {key: value.detach().clone() for key, value in base.state_dict().items()}
        layer.double()
        before = {key: value.detach().clone() for key, value in base.state_dict().items()}
        try:
            layer.merge()
        except (NotImplementedError, ValueError, RuntimeError, TypeError) as error:
            raise InputError(
                f"PEFT cannot merge {type(layer).__name__} at {name}, so its update has no matrix: {' '.join(str(error).split())[:160]}"
            ) from error
        merged = layer.get_base_layer()
        bias, weight = getattr(merged, "bias", None), merged.weight.detach()
        if bias is not None and not _equal(bias, before["bias"]):
            raise InputError(f"the adapter also changes the bias of {name}, which LoRA cannot hold; use --to merged")
        start = before["weight"] if pristine is None else pristine.get_submodule(name).weight.detach().double()
        update = (weight - start).double()
        layer.unmerge() if layer.merged else None
        layer.float()
        base.load_state_dict(kept)
        yield name, update.T if type(base).__name__ == "Conv1D" else update


def adapted_layers(model: Any) -> list[tuple[str, Any]]:
    """`(name in the base model, PEFT layer)` of every adapted layer."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    found = [(name, module) for name, module in model.named_modules() if isinstance(module, BaseTunerLayer)]
    return [(name.removeprefix(PREFIX), module) for name, module in found if hasattr(module, "get_base_layer")]


def _equal(a: Any, b: Any) -> bool:
    return bool((a.detach().double() == b.double()).all())


def low_rank(update: "Tensor", most: int) -> "tuple[Tensor, Tensor, Tensor]":
    """Leading singular triplets U (m, k), S (k,), V (n, k) of an update, k = min(m, n, most).

    Exact through the smaller Gram matrix up to a side of 1024; beyond that by a randomised range finder, whose error is
    measured afterwards like any other.
    """
    import torch

    side = min(update.shape)
    if side > 1024 and most < side // 2:
        u, s, v = torch.svd_lowrank(update, q=min(side, most + 8), niter=2)
        return u[:, :most], s[:most], v[:, :most]
    tall = update.shape[0] >= update.shape[1]
    values, vectors = torch.linalg.eigh(update.T @ update if tall else update @ update.T)
    vectors = vectors.flip(1)[:, :most]
    root = values.flip(0)[:most].clamp(min=0).sqrt()
    other = (update if tall else update.T) @ vectors
    unit = other / root.clamp(min=1e-300)
    return (unit, root, vectors) if tall else (vectors, root, unit)
