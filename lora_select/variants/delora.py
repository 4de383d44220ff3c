"""Decoupled low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class DeLoRA(Variant):
    """W(theta) = W + (l / r) sum_k b_k a_k^T / (||b_k|| ||a_k||) diag(c), c the column norms of W, from B = 0 and random A.

    The size of the update is l alone (trained, from 15), its directions are A and B. Norms are cut below 1e-4, so at the start B
    moves as in LoRA with rows a_k * c and a scale of 1e4: tangent of r m dimensions, share of rows a_k * c, r / n if columns of W
    are alike; one step later norms take over, and no displacement is given. The published form (Bini et al., equation 7).
    """

    r: int
    name = "delora"
    references = ("Bini, Girrbach, Akata (2025), DeLoRA, arXiv 2503.18225",)
    peft_class = "DeloraConfig"
    trained = ("delora_A", "delora_B", "delora_lambda")
    frozen = ("delora_w_norm",)
    cost = Cost(1.12, 0.0)
    support = Support(low_rank=True, nf4="cannot be initialised", int8="cannot be initialised")
    reference_rate = 1e-3

    def peft_arguments(self) -> dict[str, Any]:
        """PEFT's and the paper's l."""
        return {"r": self.r, "delora_lambda": 15, "module_dropout": 0.0, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n) + 1`."""
        return self.r * sum(shape) + 1

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + (l / r) B diag(1 / (||b|| ||a||)) A diag(c)`."""
        a, b = theta["delora_A"], theta["delora_B"]
        lengths = (a.square().sum(1).clamp(min=1e-8) * b.square().sum(0).clamp(min=1e-8)).sqrt()
        return weight + b * (theta["delora_lambda"] / self.r / lengths) @ a * theta["delora_w_norm"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)
