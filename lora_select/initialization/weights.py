"""Starts from the weights alone, read one layer at a time: PiSSA, MiLoRA, OLoRA."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.errors import InputError
from lora_select.initialization.linalg import minor_factors, principal_factors, qr_factors
from lora_select.records import AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.initialization import Factors, Source


def pissa(spec: AdapterSpec, source: "Source") -> "Factors":
    """The r largest singular triplets."""
    for layer, weight in fitting_weights(spec, source.base):
        yield layer, principal_factors(weight, spec.r, spec.scale)


def milora(spec: AdapterSpec, source: "Source") -> "Factors":
    """The r smallest singular triplets."""
    for layer, weight in fitting_weights(spec, source.base):
        yield layer, minor_factors(weight, spec.r, spec.scale)


def olora(spec: AdapterSpec, source: "Source") -> "Factors":
    """The first r columns of Q and rows of R."""
    for layer, weight in fitting_weights(spec, source.base):
        yield layer, qr_factors(weight, spec.r)


def fitting_weights(spec: AdapterSpec, base: Path) -> "Iterator[tuple[str, Tensor]]":
    """Weights (m, n) of the targeted layers by module name, whatever way round the file holds them.

    Raises:
        InputError: no safetensors, or a layer that the rank does not fit.
    """
    for layer, weight in target_weights(spec, base):
        if spec.r > min(weight.shape):
            raise InputError(
                f"r {spec.r} is above the smallest side {min(weight.shape)} of {layer}; lower `selection.r`"
            )
        yield layer, weight


def target_weights(spec: AdapterSpec, base: Path) -> "Iterator[tuple[str, Tensor]]":
    """Two-dimensional weights of the targeted layers, one at a time, by module name."""
    from safetensors import safe_open

    from lora_select.models import linear_layers

    files = _weight_files(base)
    modules = {name: kind for name, kind in linear_layers(str(base)).items() if targeted(name, spec)}
    for path in files:
        with safe_open(path, framework="pt") as file:
            for key in sorted(file.keys()):
                layer = _module_of(key.removesuffix(".weight"), modules) if key.endswith(".weight") else None
                if layer is not None:
                    weight = file.get_tensor(key)
                    yield layer, weight.T if modules[layer] == "Conv1D" else weight


def targeted(layer: str, spec: AdapterSpec) -> bool:
    """Whether PEFT's suffix rule takes the layer."""
    return spec.adapts(layer)


def _module_of(stem: str, modules: dict[str, str]) -> str | None:
    """The module of a tensor: files written by a headless model leave out the prefix (`h.0` for `transformer.h.0`)."""
    if stem in modules:
        return stem
    matches = [name for name in modules if name.endswith(f".{stem}")]
    return matches[0] if len(matches) == 1 else None


def _weight_files(base: Path) -> list[Path]:
    index = base / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        return [base / name for name in names]
    files = sorted(base.glob("*.safetensors"))
    if not files:
        raise InputError(f"{base} holds no safetensors file; the start is computed from the base model's weights")
    return files
