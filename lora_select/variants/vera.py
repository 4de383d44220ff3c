"""Vector-based random matrix adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    Cost,
    Support,
    common_violations,
    mean_square_output,
    random_rows_spread,
)

if TYPE_CHECKING:
    from torch import Tensor

D_INITIAL = 0.1


@final
@dataclass(frozen=True)
class VeRA(ClosedForm):
    """W(theta) = W + diag(b) B diag(d) A, A (r, n) and B (m, r) random, frozen and shared by all layers, from b = 0, d = 0.1.

    Tangent at the start: row i moves along row i of B diag(d) A alone, m dimensions, so the mean share is 1 / n whatever the
    gradient: the bank's distribution is the same after any exchange or change of sign of inputs and of outputs. Only b moves at
    first. The bank is cut from matrices of the widest layer's shape. The published form (Kopiczko et al., equation 2).
    """

    r: int
    name = "vera"
    references = ("Kopiczko, Blankevoort, Asano (2023), VeRA, arXiv 2310.11454",)
    peft_class = "VeraConfig"
    trained = ("vera_lambda_b", "vera_lambda_d")
    frozen = ("vera_A", "vera_B")
    cost = Cost(1.07, -0.7)
    support = Support()
    reference_rate = 1e-3

    def peft_arguments(self) -> dict[str, Any]:
        """The bank is saved: its generator need not be the same elsewhere."""
        return {"r": self.r, "d_initial": D_INITIAL, "save_projection": True, "vera_dropout": 0.0, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r + m`."""
        return self.r + shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + diag(b) B diag(d) A`."""
        m, n = weight.shape
        a, b = theta["vera_A"][:, :n], theta["vera_B"][:m]
        return weight + theta["vera_lambda_b"][:, None] * b @ (theta["vera_lambda_d"][:, None] * a)

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return common_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`1 / n`."""
        return 1 / view.in_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """At most that of a gradient with one row: of a projection on one random direction."""
        return random_rows_spread(1, view.in_features)

    def displacement(self, view: LayerStatistics) -> float:
        """B moves: mean square 4 d^2 E||x||^2 / n of the widest layer, PEFT's bank having variances 2 / n (A) and 2 / r (B)."""
        moved = (2 * D_INITIAL) ** 2 * view.activation_energy / max(view.widest, view.in_features)
        return (moved / mean_square_output(view)) ** 0.5
