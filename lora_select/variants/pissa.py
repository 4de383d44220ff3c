"""Principal singular values and vectors adaptation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    mean_square_output,
)
from lora_select.variants.low_rank import AS_LORA
from lora_select.variants.residual import Residual

if TYPE_CHECKING:
    pass


@final
@dataclass(frozen=True)
class PiSSA(Residual, ClosedForm):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = U_r S_r V_r^T, the top of W's SVD, s = alpha / r = 1.

    Tangent at the start: U_r X + Y V_r^T, r (m + n - r) dimensions, so its share of a gradient is
    ||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2. Factors as published (Meng et al., equations 2 to 4) with an exact
    SVD; PEFT's `pissa_niter_*` reloads as another model. PEFT is told plain LoRA, our factors are loaded over it, and the
    trained adapter is exported as plain LoRA of rank 2 r on the pristine base.
    """

    name = "pissa"
    references = ("Meng, Wang, Zhang (2024), PiSSA, arXiv 2404.02948",)
    cost = AS_LORA
    alpha_over_r = 1
    initialization = "pissa"

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2."""
        return view.weight_left[self.r] + view.weight_right[self.r] - view.weight_both[self.r]

    def tangent_share_spread(self, view: LayerStatistics) -> float:  # noqa: ARG002
        """The start is fixed by W."""
        return 0.0

    def displacement(self, view: LayerStatistics) -> float:
        """Both factors move: mean square s sum_{k<=r} sigma_k (E(v_k . x)^2 + E||x||^2 / m)."""
        pairs = zip(view.weight_values[: self.r], view.weight_input_energy[: self.r], strict=True)
        spread = view.activation_energy / view.out_features
        moved = self.scale * sum(sigma * (energy + spread) for sigma, energy in pairs)
        return (moved / mean_square_output(view)) ** 0.5
