"""Rank-stabilised LoRA."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
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

ALPHA = 8
"""Gives LoRA's scale 2 at the reference rank 16, so that the two differ only in how the scale goes with the rank."""


@final
@dataclass(frozen=True)
class RsLoRA(ClosedForm):
    """W(theta) = W + s B A with s = alpha / sqrt(r), from B = 0 and random A (r, n).

    The tangent space is LoRA's (a scale does not change a space), and so is its share, r / n; only the step is larger at
    high rank. After the learning rate is transferred it can therefore differ from LoRA through the optimiser alone. The
    published form (Kalajdzievski, equation 5).
    """

    r: int
    name: ClassVar[str] = "rslora"
    references: ClassVar[tuple[str, ...]] = ("Kalajdzievski (2023), rsLoRA, arXiv 2312.03732",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0, "as LoRA: the same layer with another constant")
    support: ClassVar[Support] = Support(vllm=True)

    @property
    def lora_alpha(self) -> int:
        """Constant; see `ALPHA`."""
        return ALPHA

    @property
    def scale(self) -> float:
        """`alpha / sqrt(r)`, no unit."""
        return self.lora_alpha / self.r**0.5

    def peft_arguments(self) -> dict[str, Any]:
        """LoRA with `use_rslora`."""
        return lora_arguments(self, use_rslora=True)

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
