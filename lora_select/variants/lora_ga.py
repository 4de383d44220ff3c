"""Gradient approximation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Context, mean_square_output
from lora_select.variants.low_rank import AS_LORA
from lora_select.variants.residual import UNKNOWN, Residual, both_sides, gradient_violations, measured

if TYPE_CHECKING:
    pass

ALPHA = 16
GAMMA = 16.0
"""gamma of the stable scale, the authors' setting."""


@final
@dataclass(frozen=True)
class LoRAGA(Residual, ClosedForm):
    """W(theta) = (W - s B0 A0) + s B A, s = alpha / sqrt(r), from A0 = c V_{1..r}^T and B0 = c U_{r+1..2r} of G = U S V^T.

    c = m^(1/4) / sqrt(gamma), whatever the gradient's size. Tangent at the start: {s (dB A + B dA)}, which holds the 2 r
    leading singular triplets of G: its share is (sigma_1^2 + .. + sigma_2r^2) / ||G||^2, the most that rank r can. As
    published (Wang, Yu, Li, theorem 3.2 and algorithm 1); PEFT's `lora_ga` multiplies B by the singular values of G, which
    starts close to B = 0. The trained adapter is exported as plain LoRA of rank 2 r.
    """

    name = "lora_ga"
    title = "LoRA-GA"
    references = ("Wang, Yu, Li (2024), LoRA-GA, arXiv 2407.05000",)
    cost = AS_LORA
    alpha = 16
    rank_stabilised = True
    initialization = "lora_ga"

    def violations(self, context: Context) -> tuple[str, ...]:
        """Those of a start that changes the base, and 2 r measured directions of the gradient."""
        return super().violations(context) + gradient_violations(self, context, 2 * self.r)

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 + ||G V||^2 over ||G||^2, held out; the directions are disjoint, so the cross term is left out.

        Where 2 r directions were not measured, the part of V alone: a lower bound.
        """
        r, m, n = self.r, view.out_features, view.in_features
        if r not in view.gradient_right:
            return both_sides(r / m, r / n, r * r / (m * n))
        left = view.gradient_left
        return view.gradient_right[r] + max(0.0, measured(left, 2 * r, left[r]) - left[r])

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by the data."""
        return 0.0 if self.r in view.gradient_right else UNKNOWN

    def displacement(self, view: LayerStatistics) -> float:
        """At most s^2 c^2 (sum_{k<=r} lambda_k + r E||x||^2 / m) in mean square: V lies no better than the inputs' leading axes."""
        gain = view.out_features**0.5 / GAMMA
        leading = sum(view.activation_input_energy[: self.r])
        moved = self.scale**2 * gain * (leading + self.r * view.activation_energy / view.out_features)
        return (moved / mean_square_output(view)) ** 0.5
