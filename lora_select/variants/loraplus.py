"""LoRA+: another learning rate for B."""

from dataclasses import dataclass
from typing import Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import Cost
from lora_select.variants.low_rank import RandomRows


@final
@dataclass(frozen=True)
class LoRAPlus(RandomRows):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and random A; B is trained at `ratio` times the learning rate of A.

    Tangent space and share at the start are LoRA's, r / n: only the metric differs. The first step moves B alone, so it goes
    `ratio` times as far as LoRA's, and equal displacement divides the learning rate by as much; A then learns at 1 / `ratio`
    of LoRA's. The published form (Hayou et al., section 4; a ratio of 16 is their recommendation), through PEFT's optimizer.
    """

    ratio: float = 16.0
    name = "loraplus"
    title = "LoRA+"
    references = ("Hayou, Ghosh, Yu (2024), LoRA+, arXiv 2402.12354",)
    cost = Cost(1.0, 0.0, "as LoRA: the same layer with other rates")

    @property
    def optimizer(self) -> dict[str, Any]:
        """AdamW with two learning rates."""
        return {"name": "lora+", "lora_b_ratio": self.ratio}

    def displacement(self, view: LayerStatistics) -> float:
        """LoRA's times `ratio`: only B moves."""
        return self.ratio * super().displacement(view)
