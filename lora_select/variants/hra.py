"""Householder reflection adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class HRA(Variant):
    """W(theta) = W H_1 ... H_r, reflections H_k = I - 2 u_k u_k^T / ||u_k||^2, from u_1 = u_2, u_3 = u_4, ...: pairs cancel.

    Tangent at the start: {W S}, S skew of rank at most 2 in each pair's plane; no closed form of its share. An exact rotation of
    the inputs for even r; for odd r the start is a reflection, so odd ranks are refused. The published form (Yuan et al., section
    3.1) without the Gram-Schmidt variant.
    """

    r: int
    name = "hra"
    references = ("Yuan, Liu, Xu (2024), HRA, arXiv 2405.17484",)
    peft_class = "HRAConfig"
    trained = ("hra_u",)
    cost = Cost(13.0, None, "PEFT method_comparison/image-gen, next to LoRA; no MetaMathQA run")
    support = Support(nf4="fails in the forward pass", int8="computes garbage without an error")
    reference_rate = 1e-4

    def peft_arguments(self) -> dict[str, Any]:
        """Free vectors."""
        return {"r": self.r, "apply_GS": False, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r n`."""
        return self.r * shape[1]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W H_1 ... H_r`."""
        units = theta["hra_u"] / theta["hra_u"].norm(dim=0)
        for k in range(self.r):
            u = units[:, k]
            weight = weight - 2 * (weight @ u)[:, None] * u
        return weight

    def violations(self, context: Context) -> tuple[str, ...]:
        """An odd number of reflections cannot start at the base."""
        odd = (f"hra starts at the base for even r only, got r {self.r}; take {self.r + 1}",) if self.r % 2 else ()
        return (*odd, *rank_violations(self, context))
