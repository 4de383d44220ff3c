"""Hadamard high-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    Cost,
    Support,
    mean_square_columns,
    mean_square_output,
    random_rows_spread,
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class HiRA(ClosedForm):
    """W(theta) = W * (1 + B A), entry-wise product, from B = 0 and random A (r, n): an update of full rank.

    Tangent at the start: W * (dB A), row i in span{w_i * a_k}, r m dimensions. The mean share over random A is about
    (r / n) sum_ij n g_ij^2 w_ij^2 / ||w_i||^2 / ||G||^2: r / n for a gradient that knows nothing of W. That is of first order in
    r / n (a projection saturates where W is large), within a fifth at r / n = 0.3. The published form (Huang et al., equation 4).
    """

    r: int
    name = "hira"
    references = ("Huang et al. (2025), HiRA, ICLR, OpenReview TwJrTz9cRS",)
    peft_class = "HiraConfig"
    trained = ("hira_A", "hira_B")
    cost = Cost(1.37, 1.3)
    support = Support()
    reference_rate = 4.5e-3

    def peft_arguments(self) -> dict[str, Any]:
        """No scale: the weight itself is one."""
        return {"r": self.r, "hira_dropout": 0.0}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W * (1 + B A)`."""
        return weight * (1 + theta["hira_B"] @ theta["hira_A"])

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """(r / n) times the energy of G where W is large; r / n where that was not measured."""
        return min(1.0, self.r / view.in_features * (view.hadamard or 1.0))

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """As of LoRA's row space, scaled with it; 1 where nothing was measured."""
        return random_rows_spread(self.r, view.in_features) * max(1.0, view.hadamard) if view.hadamard else 1.0

    def displacement(self, view: LayerStatistics) -> float:
        """B moves: mean square r / (3 n) sum_j ||w_j||^2 E x_j^2 / m, for x whose energy does not know W's columns."""
        return (self.r / (3 * view.in_features) * mean_square_columns(view) / mean_square_output(view)) ** 0.5
