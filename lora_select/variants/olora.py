"""Orthonormal low-rank adaptation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm
from lora_select.variants.low_rank import AS_LORA
from lora_select.variants.residual import UNKNOWN, Residual, both_sides, measured

if TYPE_CHECKING:
    pass


@final
@dataclass(frozen=True)
class OLoRA(Residual, ClosedForm):
    """W(theta) = (W - s B0 A0) + s B A from B0 = Q_r, A0 = R_r of W = Q R, s = alpha / r = 1: W's part in its first r columns.

    Tangent at the start: Q_r X + Y R_r, r (m + n - r) dimensions, so its share of a gradient is ||Q^T G||^2 + ||G V||^2 -
    ||Q^T G V||^2 over ||G||^2, V a basis of R_r's rows. As published (Büyükakyüz, section 3); PEFT's factors of a GPT-2
    `Conv1D` are those of the transposed weight and change the function, ours do not. The trained adapter is exported as plain
    LoRA of rank 2 r.
    """

    name = "olora"
    references = ("Büyükakyüz (2024), OLoRA, arXiv 2406.01775",)
    cost = AS_LORA
    alpha_over_r = 1
    reference_rate = 1.7e-5
    rate_source = "LoRA's reference over 18, the divisor that arXiv 2602.04998 measured"
    initialization = "olora"

    def tangent_share(self, view: LayerStatistics) -> float:
        """||Q^T G||^2 + ||G V||^2 - ||Q^T G V||^2 over ||G||^2; of white noise where it was not measured."""
        r, m, n = self.r, view.out_features, view.in_features
        return both_sides(
            measured(view.weight_columns_left, r, r / m),
            measured(view.weight_columns_right, r, r / n),
            measured(view.weight_columns_both, r, r * r / (m * n)),
        )

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by W."""
        return 0.0 if self.r in view.weight_columns_left else UNKNOWN
