"""Rotation and scaling of outputs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, common_violations, divides

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class RoAd(Variant):
    """W(theta) = R W, R rotating and scaling pairs of outputs: a [cos t, -sin t; sin t, cos t], from a = 1, t = 0.

    A pair is output i and i + g / 2 of a group of g. Tangent at the start: in each pair, da (w_i, w_j) + dt (-w_j, w_i), m
    dimensions in all; its share is of two fixed directions a pair, at most that of 2 x 2 mixtures of rows. A layer's bias is turned
    too. The published form (Liao, Monz, equation 3), variant 1.
    """

    group: int = 64
    r: int = field(default=0, init=False)
    name = "road"
    references = ("Liao, Monz (2024), RoAd, arXiv 2409.00119",)
    peft_class = "RoadConfig"
    trained = ("road_theta", "road_alpha")
    cost = Cost(1.04, 0.5)
    support = Support()
    reference_rate = 1e-3

    @property
    def size(self) -> str:
        """By group size."""
        return f"g{self.group}"

    def peft_arguments(self) -> dict[str, Any]:
        """Variant 1: one angle and one scale a pair."""
        return {"variant": "road_1", "group_size": self.group}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`m`."""
        return shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`R W`."""
        import torch

        first, second = weight.unflatten(0, (-1, 2, self.group // 2)).unbind(1)
        angle, gain = (theta[name].reshape(-1, self.group // 2, 1) for name in ("road_theta", "road_alpha"))
        c, s = gain * angle.cos(), gain * angle.sin()
        return torch.stack([c * first - s * second, c * second + s * first], 1).flatten(0, 2)

    def violations(self, context: Context) -> tuple[str, ...]:
        """G must divide the outputs."""
        found = list(common_violations(self, context))
        for name, m, _ in context.layers:
            found += divides("road's group size", self.group, m, name, "outputs")
        return tuple(found)
