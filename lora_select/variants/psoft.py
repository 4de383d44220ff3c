"""Orthogonal finetuning in the principal subspace."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class PSOFT(Variant):
    """W(theta) = W + U S (diag(p) C diag(q) - I) V^T, U S V^T the top-r SVD of W, C = (I + Q)(I - Q)^-1, from Q = 0, p = q = 1.

    Tangent at the start: {U S (K + diag(dp + dq)) V^T}, K skew: r (r - 1) / 2 + r dimensions inside `weight_both`, the share of
    the principal block, which bounds its own. A rotation of the principal subspace and two scalings, r (r - 1) / 2 + 2 r
    parameters whatever the layer: it exports as LoRA of rank r exactly. The published form (Wu et al., equation 8).
    """

    r: int
    name = "psoft"
    references = ("Wu et al. (2025), PSOFT, arXiv 2505.11235",)
    peft_class = "PsoftConfig"
    trained = ("psoft_R.weight", "psoft_R.vector_b", "psoft_R.vector_a")
    frozen = ("_psoft_A_cache", "_psoft_B_cache")
    cost = Cost(1.3, -1.5)
    support = Support(low_rank=True, nf4="cannot be initialised", int8="cannot be initialised")
    reference_rate = 1e-4

    @property
    def lora_alpha(self) -> int:
        """R."""
        return self.r

    @property
    def scale(self) -> float:
        """1."""
        return 1.0

    def peft_arguments(self) -> dict[str, Any]:
        """Exact SVD and exact Cayley map: a truncated series would leave the rotations."""
        return {"r": self.r, "psoft_alpha": self.lora_alpha, "psoft_dropout": 0.0, "use_cayley_neumann": False}

    def num_parameters(self, shape: tuple[int, int]) -> int:  # noqa: ARG002
        """`r (r - 1) / 2 + 2 r`."""
        return self.r * (self.r - 1) // 2 + 2 * self.r

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + B (diag(p) C diag(q) - I) A`."""
        import torch

        one = torch.eye(self.r, dtype=weight.dtype)
        rows, columns = torch.triu_indices(self.r, self.r, 1)
        upper = torch.zeros_like(one).index_put((rows, columns), theta["psoft_R.weight"])
        q = upper - upper.T
        turn = torch.linalg.solve(one - q, one + q, left=False)
        turn = theta["psoft_R.vector_b"][:, None] * turn * theta["psoft_R.vector_a"]
        return weight + self.scale * theta["_psoft_B_cache"] @ (turn - one) @ theta["_psoft_A_cache"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)
