"""Scaled activations."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Context, Cost, Support, common_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class IA3(ClosedForm):
    """W(theta) = diag(l) W, every output scaled, from l = 1.

    Tangent at the start: {diag(dl) W}, m dimensions; row i moves along w_i alone, so the share is sum_i <g_i, w_i>^2 / ||w_i||^2
    over ||G||^2, with no randomness. Of the published method (Liu et al., section 3.3: keys, values and the inputs of the second
    feed-forward layer) this is the output form on every targeted layer. A sign step of unit rate doubles or deletes an output.
    """

    r: int = field(default=0, init=False)
    name = "ia3"
    references = ("Liu et al. (2022), (IA)^3, arXiv 2205.05638",)
    peft_class = "IA3Config"
    trained = ("ia3_l",)
    cost = Cost(1.0, 0.9)
    support = Support()
    reference_rate = 5e-3

    @property
    def size(self) -> str:
        """One scale an output."""
        return "rows"

    def peft_arguments(self) -> dict[str, Any]:
        """No layer is treated as the second feed-forward one."""
        return {"feedforward_modules": []}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`m`."""
        return shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`diag(l) W`."""
        return theta["ia3_l"] * weight

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return common_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """Of the row scalings."""
        return view.row_scale

    def tangent_share_spread(self, view: LayerStatistics) -> float:  # noqa: ARG002
        """The start is fixed."""
        return 0.0

    def displacement(self, view: LayerStatistics) -> float:  # noqa: ARG002
        """1: every output moves by itself."""
        return 1.0
