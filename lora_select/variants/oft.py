"""Orthogonal finetuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    Cost,
    Support,
    common_violations,
    divides,
    mean_square_columns,
    mean_square_output,
)
from lora_select.variants.residual import UNKNOWN, measured

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class OFT(ClosedForm):
    """W(theta) = W R^T, R block-diagonal, blocks I + 2 Q + 2 Q^2 + 2 Q^3 + Q^4 of skew Q (b, b), from Q = 0.

    The blocks are Cayley's (I + Q)(I - Q)^-1 up to order 4, PEFT's default, so rotations only while Q is small. Tangent at the
    start: {W S, S block-skew}, (n / b) b (b - 1) / 2 dimensions; the share is that of block rotations (`rotation` of the layer).
    Column norms and angles within a block are kept. After Qiu et al., section 3.2, on the input side and with b fixed.
    """

    block: int = 32
    r: int = field(default=0, init=False)
    name = "oft"
    references = (
        "Qiu et al. (2023), OFT, arXiv 2306.07280",
        "Qiu et al. (2025), OFTv2, arXiv 2506.19847",
    )
    peft_class = "OFTConfig"
    trained = ("oft_R",)
    cost = Cost(1.26, 0.0)
    support = Support()
    reference_rate = 1e-4

    @property
    def size(self) -> str:
        """By block size."""
        return f"b{self.block}"

    def peft_arguments(self) -> dict[str, Any]:
        """Blocks by size; neither shared nor constrained."""
        return {"r": 0, "oft_block_size": self.block, "module_dropout": 0.0, "coft": False, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`n (b - 1) / 2`."""
        return shape[1] // self.block * (self.block * (self.block - 1) // 2)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W R^T`, the upper triangle of Q row by row."""
        import torch

        entries = theta["oft_R"]
        rows, columns = torch.triu_indices(self.block, self.block, 1)
        upper = entries.new_zeros(len(entries), self.block, self.block)
        upper = upper.index_put((torch.arange(len(entries))[:, None], rows, columns), entries)
        q = upper - upper.mT
        rotation = torch.eye(self.block, dtype=q.dtype) + 2 * q + 2 * q @ q + 2 * q @ q @ q + q @ q @ q @ q
        blocks = weight.unflatten(1, (-1, self.block))
        return torch.einsum("mkb,kcb->mkc", blocks, rotation).flatten(1)

    def violations(self, context: Context) -> tuple[str, ...]:
        """PEFT would silently take another block size."""
        found = list(common_violations(self, context))
        for name, _, n in context.layers:
            found += divides("oft's block size", self.block, n, name, "inputs")
        return tuple(found)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`rotation` of its block size, of the gradient's leading directions; of white noise where it was not measured."""
        return measured(view.rotation, self.block, (self.block - 1) / (2 * view.out_features))

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by W."""
        return 0.0 if self.block in view.rotation else UNKNOWN

    def displacement(self, view: LayerStatistics) -> float:
        """Q moves: mean square 4 (b - 1) ||W||^2 / (m n) E||x||^2, for x whose energy does not know W's columns."""
        return (4 * (self.block - 1) * mean_square_columns(view) / mean_square_output(view)) ** 0.5
