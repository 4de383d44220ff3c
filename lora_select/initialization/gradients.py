"""Starts from the gradient's leading singular system in the spectral record: LoRA-GA and LoRA-One, both as published."""

from typing import TYPE_CHECKING

from lora_select.errors import InputError
from lora_select.initialization.activations import measured_layers
from lora_select.records import AdapterSpec

if TYPE_CHECKING:
    from lora_select.initialization import Factors, Source

LORA_GA_GAMMA = 16.0
"""gamma of LoRA-GA's stable scale, the authors' setting."""
LORA_ONE_GAMMA = 128.0
"""gamma of LoRA-One, the authors' setting."""
PARTS = ("gradient_left", "gradient_values", "gradient_right")


def lora_ga(spec: AdapterSpec, source: "Source") -> "Factors":
    """A = c V_{1..r}^T, B = c U_{r+1..2r}, c = m^(1/4) / sqrt(gamma): disjoint directions, whatever the gradient's size."""
    r = spec.r
    for layer, (left, _, right) in measured_layers(spec, source.tensors, PARTS):
        _check(spec, source, layer, left.shape[1], 2 * r)
        gain = left.shape[0] ** 0.25 / LORA_GA_GAMMA**0.5
        yield layer, (gain * right[:, :r].T, gain * left[:, r : 2 * r])


def lora_one(spec: AdapterSpec, source: "Source") -> "Factors":
    """B = -c U_r sqrt(S_r / s_1), A = c sqrt(S_r / s_1) V_r^T, c = 1 / sqrt(gamma): one step down the gradient.

    U, S, V of the mean gradient G; the sign makes s B A a step along -G.
    """
    r = spec.r
    for layer, (left, values, right) in measured_layers(spec, source.tensors, PARTS):
        _check(spec, source, layer, left.shape[1], r)
        gain = (values[:r] / values[0].clamp(min=1e-30)).clamp(min=0).sqrt() / LORA_ONE_GAMMA**0.5
        yield layer, (gain[:, None] * right[:, :r].T, -left[:, :r] * gain)


def _check(spec: AdapterSpec, source: "Source", layer: str, kept: int, needed: int) -> None:
    if needed > kept:
        raise InputError(
            f"{spec.init} at r {spec.r} needs {needed} singular directions of the gradient of {layer}, and "
            f"{source.tensors.name} holds {kept}; lower `selection.r`"
        )
