"""Granular low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    Cost,
    Support,
    divides,
    random_rows_spread,
    random_start_displacement,
    rank_violations,
)
from lora_select.variants.low_rank import LowRank

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class GraLoRA(LowRank, ClosedForm):
    """W(theta) = W + s D, D in k x k blocks, block (i, j) = B_ij A_ij of rank r / k, s = alpha / r, from B = 0 and random A.

    Tangent at the start: a row of block row i moves in the span of r random directions, r / k of them in each block of the
    inputs: r m dimensions, mean share r / n as LoRA's, more evenly over the inputs. The published form (Jung et al., section
    3.2) without the hybrid part; k = 2 as they advise below r = 64.
    """

    blocks: int = 2
    name = "gralora"
    references = ("Jung et al. (2025), GraLoRA, arXiv 2505.20355",)
    peft_class = "GraloraConfig"
    trained = ("gralora_A", "gralora_B")
    cost = Cost(1.16, 0.0)
    support = Support()
    reference_rate = 2e-4

    def peft_arguments(self) -> dict[str, Any]:
        """PEFT calls alpha `alpha` here."""
        return {"r": self.r, "alpha": self.lora_alpha, "gralora_k": self.blocks, "hybrid_r": 0, "gralora_dropout": 0.0}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """Block (i, j): outputs from slice j of B_i (k, r, m/k), inputs from slice i of A_j (k, n/k, r)."""
        import torch

        k = self.blocks
        a, b = theta["gralora_A"], theta["gralora_B"]
        a = a.unflatten(2, (k, self.r // k))  # input block j, n/k, output block i, r/k
        b = b.unflatten(1, (k, self.r // k))  # output block i, input block j, r/k, m/k
        update = torch.einsum("jnir,ijrm->imjn", a, b).reshape(weight.shape)
        return weight + self.scale * update

    def violations(self, context: Context) -> tuple[str, ...]:
        """K must divide r and both sides of every layer."""
        found = list(rank_violations(self, context))
        if self.r % self.blocks:
            found.append(f"gralora splits its rank in {self.blocks} blocks, and r is {self.r}; choose a multiple")
        for name, m, n in context.layers:
            found += divides("gralora's number of blocks", self.blocks, m, name, "outputs")
            found += divides("gralora's number of blocks", self.blocks, n, name, "inputs")
        return tuple(found)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r / n`."""
        return self.r / view.in_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of r / k random rows in n / k inputs, all that a gradient on one block sees."""
        return random_rows_spread(self.r // self.blocks, view.in_features // self.blocks)

    def displacement(self, view: LayerStatistics) -> float:
        """LoRA's: k blocks of r / k rows, each of variance k / (3 n)."""
        return random_start_displacement(self.scale, self.r, view)
