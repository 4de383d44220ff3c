"""Starts from the layer inputs' leading directions in the spectral record: EVA and CorDA."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.errors import InputError
from lora_select.initialization.linalg import oriented_factors
from lora_select.initialization.weights import fitting_weights, targeted
from lora_select.records import AdapterSpec

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.initialization import Factors, Source


def eva(spec: AdapterSpec, source: "Source") -> "Factors":
    """A = the r leading directions of the inputs, B = 0."""
    for layer, parts in measured_layers(spec, source.tensors, ("activation_vectors", "gradient_left")):
        vectors, left = parts
        if spec.r > vectors.shape[1]:
            raise InputError(
                f"EVA at r {spec.r} needs {spec.r} activation directions of {layer}, and {source.tensors.name} holds "
                f"{vectors.shape[1]}; raise `analysis.sketch_size` or lower `selection.r`"
            )
        yield layer, (vectors[:, : spec.r].T, vectors.new_zeros(left.shape[0], spec.r))


def corda_ipm(spec: AdapterSpec, source: "Source") -> "Factors":
    """Instruction-previewed: the r largest singular triplets of W C."""
    yield from _corda(spec, source, smallest=False)


def corda_kpm(spec: AdapterSpec, source: "Source") -> "Factors":
    """Knowledge-preserved: the r smallest singular triplets of W C."""
    yield from _corda(spec, source, smallest=True)


def _corda(spec: AdapterSpec, source: "Source", *, smallest: bool) -> "Factors":
    names = ("activation_vectors", "activation_values")
    seen = dict(measured_layers(spec, source.tensors, names))
    for layer, weight in fitting_weights(spec, source.base):
        if layer not in seen:
            raise InputError(
                f"{source.tensors.name} holds no activation directions of {layer}, which CorDA's start needs"
            )
        vectors, values = seen[layer]
        yield layer, oriented_factors(weight, vectors, values, spec.r, spec.scale, smallest=smallest)


def measured_layers(
    spec: AdapterSpec, tensors: Path, parts: tuple[str, ...]
) -> "Iterator[tuple[str, tuple[Tensor, ...]]]":
    """Targeted layers of the spectral record by name, with the named parts of each.

    Raises:
        InputError: the record lacks a part: it was written by an older version.
    """
    from safetensors import safe_open

    with safe_open(tensors, framework="pt") as file:
        keys = set(file.keys())
        layers = sorted(key.removesuffix(f".{parts[0]}") for key in keys if key.endswith(f".{parts[0]}"))
        for layer in layers:
            if not targeted(layer, spec):
                continue
            missing = [part for part in parts if f"{layer}.{part}" not in keys]
            if missing:
                raise InputError(
                    f"{tensors.name} holds no {', '.join(missing)} of {layer}, which {spec.init}'s start needs; "
                    "measure again with this version: remove the run's spectra stage"
                )
            yield layer, tuple(file.get_tensor(f"{layer}.{part}") for part in parts)
