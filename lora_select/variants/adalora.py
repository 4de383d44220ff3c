"""Adaptive budget allocation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    ClosedForm,
    Context,
    Cost,
    Support,
    mean_square_output,
    rank_violations,
    whole_factors,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class AdaLoRA(ClosedForm):
    """W(theta) = W + alpha / (r0 + 1e-5) B diag(E) A, r0 = 3 r / 2, from E = 0; triplets are then masked down to r a layer.

    `r` is the mean rank that is left; r0 the rank at the start (PEFT's 12 for 8). Tangent at the start: only E moves, r0
    dimensions in span{b_k a_k^T}, so the mean share is r0 / (m n): tiny, and told apart from LoRA's by the step alone. Ranks are
    taken away between 10 and 70 % of the steps by sensitivity (Zhang et al., section 3.2); the regulariser that keeps A and B
    near orthogonal is added as a gradient. PEFT divides by r0 and keeps doing so after masking.
    """

    r: int
    name = "adalora"
    references = ("Zhang et al. (2023), AdaLoRA, arXiv 2303.10512",)
    peft_class = "AdaLoraConfig"
    trained = ("lora_A", "lora_B", "lora_E")
    cost = Cost(1.24, 0.5)
    support = Support()

    @property
    def initial_rank(self) -> int:
        """r0."""
        return self.r * 3 // 2

    @property
    def lora_alpha(self) -> int:
        """2 r0, so that the scale is LoRA's at the reference rank; PEFT's default gives a sixteenth of it."""
        return 2 * self.initial_rank

    @property
    def scale(self) -> float:
        """`alpha / (r0 + 1e-5)`, no unit."""
        return self.lora_alpha / (self.initial_rank + 1e-5)

    @property
    def optimizer(self) -> dict[str, Any]:
        """AdamW, with the regulariser before a step and the allocation of ranks after it."""
        return {"name": "adalora"}

    def peft_arguments(self) -> dict[str, Any]:
        """The schedule is a placeholder: :func:`lora_select.training.worker.optimizer.scheduled` writes the plan's."""
        ranks = {"target_r": self.r, "init_r": self.initial_rank, "lora_alpha": self.lora_alpha}
        return ranks | {"total_step": 10, "tinit": 1, "tfinal": 3, "lora_dropout": 0.0, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r0 (m + n + 1)`."""
        return self.initial_rank * (sum(shape) + 1)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B diag(E) A`."""
        return weight + self.scale * theta["lora_B"] @ (theta["lora_A"] * theta["lora_E"])

    def violations(self, context: Context) -> tuple[str, ...]:
        """The allocation reads whole gradients; what is left has a rank of its own in each layer."""
        return (*rank_violations(self, context), *whole_factors(self, context))

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r0 / (m n)`."""
        return self.initial_rank / (view.out_features * view.in_features)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of r0 random rank-one directions: at most that of a rank-one G, E (b.u)^4 (a.v)^4 = 9 / (m (m+2) n (n+2))."""
        m, n = view.out_features, view.in_features
        return (self.initial_rank * 9 / (m * (m + 2) * n * (n + 2))) ** 0.5

    def displacement(self, view: LayerStatistics) -> float:
        """E moves by +-1: mean square s^2 r0 0.02^4 E||x||^2 (PEFT draws A and B with standard deviation 0.02)."""
        moved = self.scale**2 * self.initial_rank * 0.02**4 * view.activation_energy
        return (moved / mean_square_output(view)) ** 0.5
