"""Weight-decomposed low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    REFERENCE_ALPHA,
    ClosedForm,
    Context,
    Cost,
    Support,
    lora_arguments,
    mean_square_output,
    random_rows_spread,
    random_start_displacement,
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class DoRA(ClosedForm):
    """W(theta) = diag(mu / c) (W + s B A), c the row norms of W + s B A, from B = 0, random A and mu = c.

    c is a constant in the gradient (Liu et al., section 4.3; PEFT's form). Tangent at the start: rows in
    span{a_1..a_r, w_i}, (r + 1) m dimensions. With rho the share of the gradient in the row scalings, the mean share over
    random A is r/n + (1 - r/n) rho + (1 - rho) r / (n (n - 1)); for white noise rho = 1/n and it is (r + 1) / n.
    """

    r: int
    name: ClassVar[str] = "dora"
    references: ClassVar[tuple[str, ...]] = ("Liu et al. (2024), DoRA, arXiv 2402.09353",)
    trained: ClassVar[tuple[str, ...]] = ("lora_A", "lora_B", "lora_magnitude_vector")
    cost: ClassVar[Cost] = Cost(1.26, 2.2)
    support: ClassVar[Support] = Support(int8="fails in the forward pass")

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """LoRA with `use_dora`."""
        return lora_arguments(self, use_dora=True)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n) + m`, the magnitudes mu included."""
        return self.r * sum(shape) + shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`diag(mu / c) (W + s B A)`, c detached."""
        moved = weight + self.scale * theta["lora_B"] @ theta["lora_A"]
        return (theta["lora_magnitude_vector"] / moved.norm(dim=1).detach())[:, None] * moved

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own: `support` says what fails."""
        return rank_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """r/n + (1 - r/n) rho + (1 - rho) r / (n (n - 1))."""
        n, rho = view.in_features, view.row_scale
        share = self.r / n
        return share + (1 - share) * rho + (1 - rho) * share / max(1, n - 1)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of LoRA's part; w_i is fixed."""
        return random_rows_spread(self.r, view.in_features)

    def displacement(self, view: LayerStatistics) -> float:
        """LoRA's, joined with a unit step of every magnitude: outputs change by +-(w_i . x) / ||w_i||."""
        low_rank = random_start_displacement(self.scale, self.r, view)
        magnitudes = view.output_energy / max(view.weight_energy, 1e-12)
        return (low_rank**2 + magnitudes / mean_square_output(view)) ** 0.5
