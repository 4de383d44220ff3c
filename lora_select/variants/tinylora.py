"""Tiny low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class TinyLoRA(Variant):
    """W(theta) = W + U S^1/2 (sum_i v_i P_i) S^1/2 V^T, U S V^T the top-r SVD of W, P_i random and frozen, from v = 0.

    Tangent everywhere: the span of u fixed matrices inside the principal block, at most r^2 dimensions, so the share is below
    `weight_both`. u parameters a layer whatever its shape; the vector could be shared by layers, here each has its own. The
    published form (Morris et al., section 3) in PEFT's choice of P, normal of variance 1 / r.
    """

    r: int
    u: int = 64
    name = "tinylora"
    references = ("Morris et al. (2026), TinyLoRA, arXiv 2602.04118",)
    peft_class = "TinyLoraConfig"
    trained = ("tinylora_v.0",)
    frozen = ("tinylora_A", "tinylora_B", "tinylora_P")
    cost = Cost(1.1, -2.0)
    support = Support(nf4="cannot be initialised", int8="cannot be initialised")
    reference_rate = 1e-4

    def peft_arguments(self) -> dict[str, Any]:
        """Nothing tied; the projections are saved."""
        shape = {"r": self.r, "u": self.u, "weight_tying": 0.0}
        return shape | {"save_projection": True, "tinylora_dropout": 0.0}

    def num_parameters(self, shape: tuple[int, int]) -> int:  # noqa: ARG002
        """`u`."""
        return self.u

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + B (sum_i v_i P_i) A`."""
        core = (theta["tinylora_v.0"][:, None, None] * theta["tinylora_P"]).sum(0)
        return weight + theta["tinylora_B"] @ core @ theta["tinylora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)
