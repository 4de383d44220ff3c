"""Orthogonal start."""

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


@final
@dataclass(frozen=True)
class Orthogonal(LowRank, ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from A and B both non-zero with B A = 0.

    A = Q_odd^T N_1 / 10 and B = N_2 Q_even / 10 with Q orthogonal (r, r) and N normal: each of rank r / 2, in random
    directions. Tangent at the start: {s (dB A + B dA)}, so the mean share of any gradient is
    1 - (1 - r / 2m)(1 - r / 2n). PEFT's form, after a blog post; no published paper.
    """

    name = "orthogonal"
    title = "LoRA from an orthogonal start"
    references = (
        "Datta (2024), Rethinking LoRA initialisations (blog; in PEFT), of Hu et al. (2021), arXiv 2106.09685",
    )
    cost = AS_LORA
    peft_initialization = "orthogonal"

    def violations(self, context: Context) -> tuple[str, ...]:
        """An even rank, and a base of floating-point weights."""
        found = list(super().violations(context))
        if self.r % 2:
            found.append(f"the orthogonal start halves the rank, and r {self.r} is odd; use {self.r + 1}")
        if context.quantized_base:
            found.append(
                f"PEFT makes the orthogonal start in the base's type and fails on a {context.quantized_base} base; choose LoRA"
            )
        return tuple(found)

    def tangent_share(self, view: LayerStatistics) -> float:
        """1 - (1 - r / 2m)(1 - r / 2n)."""
        return random_both_sides(self.r / 2, view.out_features, self.r / 2, view.in_features)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of the two random projections, independent of each other."""
        half = max(1, self.r // 2)
        rows, columns = (random_rows_spread(half, side) for side in (view.in_features, view.out_features))
        return (rows**2 + columns**2) ** 0.5

    def displacement(self, view: LayerStatistics) -> float:
        """Both factors move, with entries of variance 1 / 200: mean square s^2 r E||x||^2 / 100."""
        moved = self.scale**2 * self.r * view.activation_energy / 100
        return (moved / mean_square_output(view)) ** 0.5
