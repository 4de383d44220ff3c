"""One-step gradient start."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    mean_square_output,
)
from lora_select.variants.low_rank import AS_LORA, LowRank
from lora_select.variants.residual import UNKNOWN, both_sides, gradient_violations, measured

if TYPE_CHECKING:
    pass

ALPHA = 16
GAMMA = 128.0
"""gamma of the start, the authors' setting."""


@final
@dataclass(frozen=True)
class LoRAOne(LowRank, ClosedForm):
    """W(theta) = W + s B A, s = alpha / sqrt(r), from s B0 A0 = -(s / gamma) U_r (S_r / sigma_1) V_r^T of G = U S V^T.

    The base is left alone: the start itself is one normalised rank-r step down the gradient, so the function moves. Tangent
    at the start: {s (dB A + B dA)} with U_r and V_r, so its share of a gradient is
    ||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2. The start of Zhang, Liu, Chen with balanced factors, normalised by
    sigma_1 as in the authors' code; their optional preconditioner is the Riemannian optimiser, a variant of its own.
    """

    name = "lora_one"
    title = "LoRA-One"
    references = ("Zhang, Liu, Chen (2025), LoRA-One, arXiv 2502.01235",)
    cost = AS_LORA
    alpha = 16
    rank_stabilised = True
    initialization = "lora_one"

    def violations(self, context: Context) -> tuple[str, ...]:
        """It needs r measured directions of the gradient."""
        return super().violations(context) + gradient_violations(self, context, self.r)

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2, held out; of white noise where it was not measured."""
        r, m, n = self.r, view.out_features, view.in_features
        return both_sides(
            measured(view.gradient_left, r, r / m),
            measured(view.gradient_right, r, r / n),
            measured(view.gradient_both, r, r * r / (m * n)),
        )

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by the data."""
        return 0.0 if self.r in view.gradient_left else UNKNOWN

    def displacement(self, view: LayerStatistics) -> float:
        """At most (s^2 / gamma) (sum_{k<=r} lambda_k + r E||x||^2 / m) in mean square: no factor exceeds 1 / sqrt(gamma)."""
        leading = sum(view.activation_input_energy[: self.r])
        spread = self.r * view.activation_energy / view.out_features
        moved = self.scale**2 / GAMMA * (leading + spread)
        return (moved / mean_square_output(view)) ** 0.5
