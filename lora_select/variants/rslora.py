"""Rank-stabilised LoRA."""

from dataclasses import dataclass
from typing import final

from lora_select.variants.base import Cost
from lora_select.variants.low_rank import RandomRows


@final
@dataclass(frozen=True)
class RsLoRA(RandomRows):
    """W(theta) = W + s B A with s = alpha / sqrt(r), from B = 0 and random A (r, n).

    The tangent space is LoRA's (a scale does not change a space), and so is its share, r / n; only the step is larger at
    high rank. After the learning rate is transferred it can therefore differ from LoRA through the optimiser alone. The
    published form (Kalajdzievski, equation 5). alpha 8 gives LoRA's scale 2 at the reference rank 16, so that the two differ
    only in how the scale goes with the rank.
    """

    name = "rslora"
    title = "rsLoRA"
    references = ("Kalajdzievski (2023), rsLoRA, arXiv 2312.03732",)
    cost = Cost(1.0, 0.0, "as LoRA: the same layer with another constant")
    alpha = 8
    rank_stabilised = True
    adapts_experts = True
