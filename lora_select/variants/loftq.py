"""LoRA-fine-tuning-aware quantisation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    mean_square_output,
    random_rows_spread,
)
from lora_select.variants.low_rank import AS_LORA, LowRank
from lora_select.variants.residual import random_both_sides

if TYPE_CHECKING:
    pass

NF4_ERROR = 0.093
"""||W - Q(W)|| / ||W|| of normal weights in nf4 blocks of 64; int8's is smaller."""


@final
@dataclass(frozen=True)
class LoftQ(LowRank, ClosedForm):
    """W(theta) = Q(W) + s B A from s B0 A0 = the best rank-r approximation of W - Q(W), s = alpha / r = 1.

    Q is the base's own quantisation (nf4 or int8), so the start brings the function nearer to the unquantised base. Tangent
    at the start: {s (dB A + B dA)}; the error's singular vectors are as good as random, so the expected share of a gradient is
    1 - (1 - r / m)(1 - r / n). One iteration of the published alternation (Li et al., algorithm 1): with more the base would be
    Q(W - s B A), which nobody can load from the published weights.
    """

    name = "loftq"
    references = ("Li et al. (2023), LoftQ, arXiv 2310.08659",)
    cost = AS_LORA
    alpha_over_r = 1
    initialization = "loftq"

    def violations(self, context: Context) -> tuple[str, ...]:
        """It needs a quantised base."""
        found = list(super().violations(context))
        if not context.quantized_base:
            found.append(
                "LoftQ's start is the error of quantisation, and the base is not quantised; set base_model.quantize"
            )
        return tuple(found)

    def tangent_share(self, view: LayerStatistics) -> float:
        """1 - (1 - r / m)(1 - r / n)."""
        return random_both_sides(self.r, view.out_features, self.r, view.in_features)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of two random projections."""
        rows, columns = (random_rows_spread(self.r, side) for side in (view.in_features, view.out_features))
        return (rows**2 + columns**2) ** 0.5

    def displacement(self, view: LayerStatistics) -> float:
        """Mean square s r sigma (E||x||^2 / n + E||x||^2 / m), sigma = ||W - Q|| (m^-1/2 + n^-1/2), white noise's largest."""
        m, n = view.out_features, view.in_features
        sigma = NF4_ERROR * view.weight_energy**0.5 * (m**-0.5 + n**-0.5)
        moved = self.scale * self.r * sigma * view.activation_energy * (1 / m + 1 / n)
        return (moved / mean_square_output(view)) ** 0.5
