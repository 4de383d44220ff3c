"""Minor component adaptation."""

from dataclasses import dataclass
from typing import final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Cost, Support, mean_square_output
from lora_select.variants.low_rank import LowRank


@final
@dataclass(frozen=True)
class MiCA(LowRank, ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, B = the r trailing left singular vectors of W, frozen; A trained from 0.

    Tangent everywhere: {s B dA}, r n dimensions, so the share of a gradient is ||U^T G||^2 / ||G||^2 with U the r minor left
    singular vectors: fixed by W, no randomness. The published form, as PEFT builds it; the base is left alone.
    """

    name = "mica"
    references = ("MiCA: minor component adaptation (2026), arXiv 2604.01694",)
    trained = ("lora_A",)
    frozen = ("lora_B",)
    cost = Cost(1.04, -0.1)
    support = Support(plain_lora=True, nf4="cannot be initialised", int8="cannot be initialised")
    reference_rate = 1e-4
    peft_initialization = "mica"

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 / ||G||^2; that of white noise where it was not measured."""
        return view.weight_minor_left.get(self.r, self.r / view.out_features)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by W; where the pass did not project on it, the share could be anything."""
        return 0.0 if self.r in view.weight_minor_left else 1.0

    def displacement(self, view: LayerStatistics) -> float:
        """A moves: mean square s^2 r E||x||^2 / m, B being orthonormal."""
        moved = self.scale**2 * self.r * view.activation_energy / view.out_features
        return (moved / mean_square_output(view)) ** 0.5
