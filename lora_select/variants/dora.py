"""Weight-decomposed low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    Cost,
    Support,
    mean_square_output,
)
from lora_select.variants.low_rank import RandomRows

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class DoRA(RandomRows):
    """W(theta) = diag(mu / c) (W + s B A), c the row norms of W + s B A, from B = 0, random A and mu = c.

    c is a constant in the gradient (Liu et al., section 4.3; PEFT's form). Tangent at the start: rows in
    span{a_1..a_r, w_i}, (r + 1) m dimensions. With rho the share of the gradient in the row scalings, the mean share over
    random A is r/n + (1 - r/n) rho + (1 - rho) r / (n (n - 1)); for white noise rho = 1/n and it is (r + 1) / n.
    """

    name = "dora"
    references = ("Liu et al. (2024), DoRA, arXiv 2402.09353",)
    trained = ("lora_A", "lora_B", "lora_magnitude_vector")
    cost = Cost(1.26, 2.2)
    support = Support(int8="fails in the forward pass")

    def peft_arguments(self) -> dict[str, Any]:
        """LoRA with `use_dora`."""
        return super().peft_arguments() | {"use_dora": True}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n) + m`, the magnitudes mu included."""
        return super().num_parameters(shape) + shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`diag(mu / c) (W + s B A)`, c detached."""
        moved = super().weight_of(weight, theta)
        return (theta["lora_magnitude_vector"] / moved.norm(dim=1).detach())[:, None] * moved

    def tangent_share(self, view: LayerStatistics) -> float:
        """r/n + (1 - r/n) rho + (1 - rho) r / (n (n - 1))."""
        n, rho = view.in_features, view.row_scale
        share = self.r / n
        return share + (1 - share) * rho + (1 - rho) * share / max(1, n - 1)

    def displacement(self, view: LayerStatistics) -> float:
        """LoRA's, joined with a unit step of every magnitude: outputs change by +-(w_i . x) / ||w_i||."""
        low_rank = super().displacement(view)
        magnitudes = view.output_energy / max(view.weight_energy, 1e-12)
        return (low_rank**2 + magnitudes / mean_square_output(view)) ** 0.5
