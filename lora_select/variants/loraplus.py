"""LoRA with a larger rate for B."""

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
class LoRAPlus(ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and random A; B is trained at `ratio` times the rate of A.

    Tangent space and share at the start are LoRA's, r / n: only the metric differs. The first step moves B alone, so it goes
    `ratio` times as far as LoRA's, and equal displacement divides the rate by as much; A then learns at 1 / `ratio` of LoRA's
    rate. The published form (Hayou et al., section 4; a ratio of 16 is their recommendation), through PEFT's optimizer.
    """

    r: int
    ratio: float = 16.0
    name: ClassVar[str] = "loraplus"
    references: ClassVar[tuple[str, ...]] = ("Hayou, Ghosh, Yu (2024), LoRA+, arXiv 2402.12354",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0, "as LoRA: the same layer with other rates")
    support: ClassVar[Support] = Support(vllm=True)

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    @property
    def optimizer(self) -> dict[str, Any]:
        """AdamW with two rates."""
        return {"name": "lora+", "lora_b_ratio": self.ratio}

    def peft_arguments(self) -> dict[str, Any]:
        """Plain LoRA: the difference is the optimizer."""
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
        """LoRA's times `ratio`: only B moves."""
        return self.ratio * random_start_displacement(self.scale, self.r, view)
