"""Low-rank adaptation, the reference variant."""

from dataclasses import dataclass
from typing import final

from lora_select.variants.base import Cost
from lora_select.variants.low_rank import RandomRows


@final
@dataclass(frozen=True)
class LoRA(RandomRows):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and random A (r, n).

    Tangent at the start: {s dB A}, r m dimensions: every update whose rows lie in the row space of A, so the expected
    share of a gradient's energy is r / n whatever the gradient. This is the form of Hu et al., section 4.1, with PEFT's
    Kaiming-uniform A in place of a Gaussian one.
    """

    name = "lora"
    references = ("Hu et al. (2021), LoRA, arXiv 2106.09685",)
    cost = Cost(1.0, 0.0)
    adapts_experts = True
