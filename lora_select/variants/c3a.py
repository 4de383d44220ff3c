"""Circular convolution adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, common_violations, divides

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class C3A(Variant):
    """W(theta) = W + D / n, D in blocks (b, b), each circulant: entry (t, j) of a block is w_((j - t) mod b), from w = 0.

    Tangent everywhere: the block-circulant matrices, m n / b dimensions, share 1 / b of white noise; of rank up to full. PEFT
    starts at random kernels unless told; here at 0. The published form (Chen et al., equation 5) with PEFT's division by the
    inputs, which asks for a rate of 0.3; PEFT computes it in float32.
    """

    block: int = 64
    r: int = field(default=0, init=False)
    name = "c3a"
    references = ("Chen et al. (2024), C3A, arXiv 2407.19342",)
    peft_class = "C3AConfig"
    trained = ("c3a_kernel",)
    cost = Cost(1.24, -0.2)
    support = Support()
    reference_rate = 3e-1

    @property
    def size(self) -> str:
        """By block size."""
        return f"b{self.block}"

    def peft_arguments(self) -> dict[str, Any]:
        """`init_weights` means zeros here."""
        return {"block_size": self.block, "init_weights": True}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`m n / b`."""
        return shape[0] * shape[1] // self.block

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + D / n`."""
        import torch

        place = torch.arange(self.block)
        blocks = theta["c3a_kernel"][:, :, (place - place[:, None]) % self.block]  # m / b, n / b, t, j
        return weight + blocks.transpose(1, 2).reshape(weight.shape) / weight.shape[1]

    def violations(self, context: Context) -> tuple[str, ...]:
        """B must divide both sides."""
        found = list(common_violations(self, context))
        for name, m, n in context.layers:
            found += divides("c3a's block size", self.block, m, name, "outputs")
            found += divides("c3a's block size", self.block, n, name, "inputs")
        return tuple(found)
