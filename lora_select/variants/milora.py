"""Minor singular components."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, mean_square_output
from lora_select.variants.low_rank import AS_LORA
from lora_select.variants.residual import UNKNOWN, Residual, both_sides, measured

if TYPE_CHECKING:
    pass


@final
@dataclass(frozen=True)
class MiLoRA(Residual, ClosedForm):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = the r smallest singular triplets of W, s = alpha / r = 1.

    The opposite of PiSSA: what the base relies on least is trained. Tangent at the start: U_r X + Y V_r^T with the minor
    singular vectors, so its share of a gradient is ||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2. As published
    (Wang et al., section 3), but for the scale; the trained adapter is exported as plain LoRA of rank 2 r.
    """

    name = "milora"
    references = ("Wang et al. (2024), MiLoRA, arXiv 2406.09044",)
    cost = AS_LORA
    alpha_over_r = 1
    initialization = "milora"

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2; of white noise where it was not measured."""
        r, m, n = self.r, view.out_features, view.in_features
        return both_sides(
            measured(view.weight_minor_left, r, r / m),
            measured(view.weight_minor_right, r, r / n),
            measured(view.weight_minor_both, r, r * r / (m * n)),
        )

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by W."""
        return 0.0 if self.r in view.weight_minor_left else UNKNOWN

    def displacement(self, view: LayerStatistics) -> float:
        """Both factors move: mean square s sum over the minor sigma_k (E(v_k . x)^2 + E||x||^2 / m).

        Exact where all singular values are known; else the minor ones are at most the rms of the unknown ones, and their
        directions are taken as average.
        """
        known, p = len(view.weight_values), min(view.out_features, view.in_features)
        spread, average = (view.activation_energy / side for side in (view.out_features, view.in_features))
        if known == p:
            pairs = zip(view.weight_values[-self.r :], view.weight_input_energy[-self.r :], strict=True)
            moved = self.scale * sum(sigma * (energy + spread) for sigma, energy in pairs)
        else:
            rest = max(0.0, view.weight_energy - sum(sigma**2 for sigma in view.weight_values))
            moved = self.scale * self.r * (rest / (p - known)) ** 0.5 * (average + spread)
        return (moved / mean_square_output(view)) ** 0.5
