"""Low-rank Hadamard product."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    Context,
    Cost,
    mean_square_output,
    random_rows_spread,
    rank_violations,
)
from lora_select.variants.low_rank import FactorProduct

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class LoHa(FactorProduct):
    """W(theta) = W + s (B1 A1) * (B2 A2), entry-wise product of two rank-r matrices, s = alpha / r, from A2 = 0.

    Tangent at the start: s (B1 A1) * (B2 dA2), column j in the span of r random directions of R^m, r n dimensions, so the mean
    share is r / m. The published form (Hyeon-Woo et al., FedPara, proposition 1), with PEFT's uniform starts.
    """

    name = "loha"
    references = ("Hyeon-Woo, Ye-Bin, Oh (2021), FedPara, arXiv 2108.06098",)
    peft_class = "LoHaConfig"
    trained = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")
    cost = Cost(1.48, 1.6)
    reference_rate = 1e-4

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`2 r (m + n)`."""
        return 2 * self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s (B1 A1) * (B2 A2)`."""
        first = theta["hada_w1_a"] @ theta["hada_w1_b"]
        return weight + self.scale * first * (theta["hada_w2_a"] @ theta["hada_w2_b"])

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r / m`."""
        return self.r / view.out_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of a projection on r random directions of R^m in each column."""
        return random_rows_spread(self.r, view.out_features)

    def displacement(self, view: LayerStatistics) -> float:
        """A2 moves: mean square s^2 E||x||^2 / (27 n), entries of B1 A1 having variance 1 / (9 n), of B2 1 / (3 r)."""
        moved = self.scale**2 * view.activation_energy / (27 * view.in_features)
        return (moved / mean_square_output(view)) ** 0.5
