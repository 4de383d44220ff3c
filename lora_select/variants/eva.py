"""Explained-variance adaptation."""

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
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class EVA(ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and A = the r leading directions of the layer's inputs.

    Tangent at the start: {s dB V^T}, r m dimensions, so its share of a gradient is ||G V||^2 / ||G||^2. Of the published
    method (Paischer et al., section 3) this is the start at uniform rank, without the redistribution of ranks; directions are
    of centred inputs without each row's first token, where PEFT's are neither centred nor masked.
    """

    r: int
    name: ClassVar[str] = "eva"
    references: ClassVar[tuple[str, ...]] = ("Paischer et al. (2024), EVA, arXiv 2410.07170",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0, "as LoRA once started")
    support: ClassVar[Support] = Support(vllm=True)
    init: ClassVar[str] = "eva"

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """Plain LoRA: the factors come from a file."""
        return lora_arguments(self)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """It needs r measured directions."""
        found = list(rank_violations(self, context))
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
