"""Low-rank adaptation, the reference variant."""

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
    random_rows_spread,
    random_start_displacement,
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class LoRA(ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and random A (r, n).

    Tangent at the start: {s dB A}, r m dimensions: every update whose rows lie in the row space of A, so the expected
    share of a gradient's energy is r / n whatever the gradient. This is the form of Hu et al., section 4.1, with PEFT's
    Kaiming-uniform A in place of a Gaussian one.
    """

    r: int
    name: ClassVar[str] = "lora"
    references: ClassVar[tuple[str, ...]] = ("Hu et al. (2021), LoRA, arXiv 2106.09685",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0)
    support: ClassVar[Support] = Support(vllm=True)

    @property
    def lora_alpha(self) -> int:
        """Constant; see `REFERENCE_ALPHA`."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """Plain LoRA."""
        return lora_arguments(self)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r / n`."""
        return self.r / view.in_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of a projection on r random rows."""
        return random_rows_spread(self.r, view.in_features)

    def displacement(self, view: LayerStatistics) -> float:
        """Of a random A and B = 0."""
        return random_start_displacement(self.scale, self.r, view)
