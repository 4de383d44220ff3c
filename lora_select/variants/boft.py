"""Butterfly orthogonal finetuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, common_violations, divides

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class BOFT(Variant):
    """W(theta) = diag(s) W R^T, R block-diagonal, blocks (I - S)(I + S)^-1, S the skew part of a free (b, b), from S = 0, s = 1.

    Exact rotations of b inputs at a time, and a scale of every output. Tangent at the start: {W K + diag(ds) W}, K block-skew,
    n (b - 1) / 2 + m dimensions; its share joins `rotation` and the row scalings. Of the published method (Liu et al., section 4)
    this is one butterfly factor: PEFT falls back to it without its CUDA extension, so more would depend on the machine.
    """

    block: int = 4
    r: int = field(default=0, init=False)
    name = "boft"
    references = ("Liu et al. (2023), BOFT, arXiv 2311.06243",)
    peft_class = "BOFTConfig"
    trained = ("boft_R", "boft_s")
    cost = Cost(7.4, 2.4)
    support = Support()
    reference_rate = 1e-4

    @property
    def size(self) -> str:
        """By block size."""
        return f"b{self.block}"

    def peft_arguments(self) -> dict[str, Any]:
        """One factor, blocks by size."""
        blocks = {"boft_block_size": self.block, "boft_block_num": 0, "boft_n_butterfly_factor": 1}
        return blocks | {"boft_dropout": 0.0, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`n b + m`: the symmetric half of a block is counted and does nothing."""
        return shape[1] * self.block + shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`diag(s) W R^T`."""
        import torch

        free = theta["boft_R"][0]
        skew = 0.5 * (free - free.mT)
        one = torch.eye(self.block, dtype=free.dtype)
        rotation = torch.linalg.solve(one + skew, one - skew, left=False)
        blocks = weight.unflatten(1, (-1, self.block))
        return theta["boft_s"] * torch.einsum("mkb,kcb->mkc", blocks, rotation).flatten(1)

    def violations(self, context: Context) -> tuple[str, ...]:
        """B must divide the inputs."""
        found = list(common_violations(self, context))
        for name, _, n in context.layers:
            found += divides("boft's block size", self.block, n, name, "inputs")
        return tuple(found)
