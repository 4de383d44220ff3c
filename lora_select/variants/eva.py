"""Explained-variance adaptation."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    mean_square_output,
)
from lora_select.variants.low_rank import AS_LORA, LowRank

if TYPE_CHECKING:
    pass


@final
@dataclass(frozen=True)
class EVA(LowRank, ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and A = the r leading directions of the layer's inputs.

    Tangent at the start: {s dB V^T}, r m dimensions, so its share of a gradient is ||G V||^2 / ||G||^2. Of the published
    method (Paischer et al., section 3) this is the start at uniform rank, without the redistribution of ranks; directions are
    of centred inputs without each row's first token, where PEFT's are neither centred nor masked.
    """

    name = "eva"
    references = ("Paischer et al. (2024), EVA, arXiv 2410.07170",)
    cost = AS_LORA
    initialization = "eva"

    def violations(self, context: Context) -> tuple[str, ...]:
        """It needs r measured directions."""
        found = list(super().violations(context))
        if self.r > context.directions:
            found.append(
                f"EVA at r {self.r} needs {self.r} activation directions, and the spectral pass kept {context.directions}; "
                "raise analysis.sketch_size or lower r"
            )
        return tuple(found)

    def tangent_share(self, view: LayerStatistics) -> float:
        """||G V||^2 / ||G||^2."""
        return view.activation_subspace[self.r]

    def tangent_share_spread(self, view: LayerStatistics) -> float:  # noqa: ARG002
        """The start is fixed by the data."""
        return 0.0

    def displacement(self, view: LayerStatistics) -> float:
        """B moves: mean square s^2 sum_{k<=r} E(z_k . x)^2, with rows of unit length."""
        moved = self.scale**2 * sum(view.activation_input_energy[: self.r])
        return (moved / mean_square_output(view)) ** 0.5
