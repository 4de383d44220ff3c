"""Matrix shard sharing."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class MiSS(Variant):
    """W(theta) = W + D^T [I I ... I], D (r, m) from 0: one block of r columns, repeated over the inputs.

    Tangent everywhere: updates whose columns repeat with period r, r m dimensions, share r / n of white noise. It is LoRA with a
    frozen A of stacked identities, so it exports as LoRA exactly. Gradients of hidden units that differ cancel in the sum over
    blocks. The published form (Kang, Yin, section 3), without its `bat` and `mini` variants.
    """

    r: int
    name = "miss"
    references = ("Kang, Yin (2024), MiSS (earlier Bone), arXiv 2409.15371",)
    peft_class = "MissConfig"
    trained = ("miss_block",)
    cost = Cost(0.95, -2.0)
    support = Support(low_rank=True)
    reference_rate = 1e-4

    def peft_arguments(self) -> dict[str, Any]:
        """The plain form."""
        return {"r": self.r, "miss_dropout": 0.0, "init_weights": True, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r m`."""
        return self.r * shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """Column j gets row j mod r of D."""
        n = weight.shape[1]
        repeated = theta["miss_block"].T.repeat(1, -(-n // self.r))
        return weight + repeated[:, :n]

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)
