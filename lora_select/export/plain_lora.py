"""Any update as plain LoRA of one rank and alpha / r = 1, with the error that the rank leaves."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select.errors import InputError
from lora_select.export.updates import adapted_layers, low_rank, updates
from lora_select.serving import vllm
from lora_select.serving.folder import COPY, FACTOR, PREFIX, WEIGHTS, PeftFolder

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 1e-6
"""A relative error below this is the rounding of float32 factors: the conversion is exact."""
MOST = max(vllm.RANKS)
"""The largest rank that is looked for unasked, vLLM's largest slot; a named rank may be larger."""


@final
@dataclass(frozen=True)
class Converted:
    """A conversion: rank of every layer, ||dW - B A|| / ||dW|| over all layers, and `exact` or `truncated`."""

    rank: int
    error: float
    method: str
    layers: int


def write_lora(
    model: Any,
    out: Path,
    base_source: str,
    *,
    rank: int | None,
    max_error: float,
    task_type: str | None = "CAUSAL_LM",
    pristine: Any = None,
) -> Converted:
    """Write the adapter of `model` as plain LoRA into `out`.

    Args:
        model: a PEFT model on the pristine base.
        out: folder for `adapter_config.json` and `adapter_model.safetensors`.
        base_source: what the config names as its base.
        rank: of every layer; None for the least that keeps the error within `max_error`.
        max_error: largest ||dW - B A|| / ||dW||, Frobenius norms over all layers; no unit.
        task_type: PEFT's, None for a model that is no language model.
        pristine: the base once more, where the adapter's start was taken off the weights that `model` holds.

    Raises:
        InputError: the error of the rank passes the limit, or nothing was trained.
    """
    parts = {name: (*low_rank(update, rank or MOST), update) for name, update in updates(model, pristine)}
    total = math.fsum(float(update.square().sum()) for *_, update in parts.values())
    if total == 0:
        raise InputError("the adapter adds nothing to any weight; there is nothing to export")
    if rank is None:
        rank = _least_rank(parts, total, max_error)
    factors, left = {}, 0.0
    for name, (u, s, v, update) in parts.items():
        a, b = _factors(u, s, v, rank)
        left += float((update - b.double() @ a.double()).square().sum())
        factors[name] = a, b
    error = math.sqrt(left / total)
    if error > max_error:
        raise InputError(
            f"at rank {rank} plain LoRA misses the adapter by {error:.3g} of ||dW||, over the limit of {max_error:g}; raise "
            "--rank or --max-error, or export with --to merged"
        )
    write_plain(out, factors, rank, base_source, task_type, target_names(model, sorted(parts)))
    return Converted(rank, error, "exact" if error <= EXACT else "truncated", len(parts))


def rewrite_lora(
    folder: PeftFolder, model: Any, out: Path, base_source: str, *, task_type: str | None = "CAUSAL_LM"
) -> Converted:
    """Write a LoRA folder in the safe form, exactly and at its own rank: the scale goes into B, smaller ranks get rows of zeros.

    Args:
        folder: LoRA without magnitudes, biases or a changed base; rsLoRA and patterns are what is folded in.
        model: the PEFT model of that folder.
        out: as in :func:`write_lora`.
        base_source: as in :func:`write_lora`.
        task_type: as in :func:`write_lora`.

    Raises:
        InputError: a factor is not finite, or all of B is zero.
    """
    import torch
    from safetensors.torch import load_file

    layers = folder.layers()
    rank = max(folder.rank(layer) for layer in layers)
    sides: dict[str, dict[str, Tensor]] = {}
    moved = False
    for name, tensor in sorted(load_file(folder.path / WEIGHTS).items()):
        match = FACTOR.fullmatch(name)
        if match is None:
            assert COPY.fullmatch(name)
            continue
        if not bool(tensor.isfinite().all()):
            raise InputError(
                f"{folder.path / WEIGHTS}: {name} holds numbers that are not finite; train the adapter again"
            )
        layer, factor = match["layer"].removeprefix(PREFIX), tensor.double()
        missing = rank - folder.rank(layer)
        if match["side"] == "A":
            whole = torch.nn.functional.pad(factor, (0, 0, 0, missing))
        else:
            whole = torch.nn.functional.pad(factor * folder.scale(layer), (0, missing))
            moved = moved or bool(tensor.any())
        sides.setdefault(layer, {})[match["side"]] = whole.float()
    if not moved:
        raise InputError("the adapter adds nothing to any weight; there is nothing to export")
    factors = {layer: (pair["A"], pair["B"]) for layer, pair in sides.items()}
    write_plain(out, factors, rank, base_source, task_type, target_names(model, list(layers)))
    return Converted(rank, 0.0, "exact", len(layers))


def target_names(model: Any, layers: list[str]) -> list[str]:
    """`target_modules` for the layers: their last names where these mean no other layer, as engines like them; else whole names."""
    last = {layer.rpartition(".")[2] for layer in layers}
    names = {name for name, _ in adapted_layers(model)}
    others = (
        name.removeprefix(PREFIX)
        for name, _ in model.named_modules()
        if ".base_layer" not in name and ".lora_" not in name
    )
    meant = {name for name in names | set(others) if name.rpartition(".")[2] in last}
    return sorted(last) if meant == set(layers) else layers


def _least_rank(parts: "dict[str, tuple[Tensor, ...]]", total: float, max_error: float) -> int:
    """The least uniform rank whose tail energy stays within the limit, at most `MOST`."""
    most = max(len(s) for _, s, *_ in parts.values())
    for rank in range(1, most + 1):
        kept = math.fsum(float(s[:rank].square().sum()) for _, s, *_ in parts.values())
        # 1e-13: below it the difference of the two sums is rounding, and no rank would seem to be enough
        if total - kept <= max(max_error**2 / 2, 1e-13) * total:
            return rank
    return most


def _factors(u: "Tensor", s: "Tensor", v: "Tensor", rank: int) -> "tuple[Tensor, Tensor]":
    """Balanced float32 factors, padded with zeros to the rank."""
    import torch

    root = s[:rank].sqrt()
    a = torch.zeros(rank, len(v), dtype=torch.float32)
    b = torch.zeros(len(u), rank, dtype=torch.float32)
    a[: len(root)] = (root[:, None] * v[:, :rank].T).float()
    b[:, : len(root)] = (u[:, :rank] * root).float()
    return a, b


def write_plain(
    out: Path,
    factors: "Mapping[str, tuple[Tensor, Tensor]]",
    rank: int,
    base_source: str,
    task_type: str | None = "CAUSAL_LM",
    targets: list[str] | None = None,
) -> None:
    """Write A (rank, n) and B (m, rank) of every layer as a plain PEFT folder with alpha / r = 1.

    Args:
        out: folder for `adapter_config.json` and `adapter_model.safetensors`.
        factors: by layer name in the base model.
        rank: of every layer.
        base_source: what the config names as its base.
        task_type: PEFT's, None for a model that is no language model.
        targets: `target_modules`; None for the layers' whole names.
    """
    from peft import LoraConfig
    from safetensors.torch import save_file

    out.mkdir(parents=True, exist_ok=True)
    config = LoraConfig(
        base_model_name_or_path=base_source,
        r=rank,
        lora_alpha=rank,
        lora_dropout=0.0,
        bias="none",
        target_modules=targets or sorted(factors),
        task_type=task_type,
        inference_mode=True,
    )
    config.save_pretrained(str(out))
    file = out / "adapter_config.json"
    values = json.loads(file.read_text(encoding="utf-8"))
    values["target_modules"] = sorted(values["target_modules"])
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    tensors = {}
    for name, (a, b) in factors.items():
        tensors[f"{PREFIX}{name}.lora_A.weight"] = a.contiguous()
        tensors[f"{PREFIX}{name}.lora_B.weight"] = b.contiguous()
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})
