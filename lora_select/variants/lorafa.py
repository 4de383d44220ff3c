"""LoRA with a frozen A."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    REFERENCE_ALPHA,
    ClosedForm,
    Context,
    Cost,
    Support,
    lora_arguments,
    random_rows_spread,
    random_start_displacement,
    rank_violations,
    whole_factors,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class LoRAFA(ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from B = 0; A stays the random start and only B is trained.

    Tangent everywhere: {s dB A}, r m dimensions, so the share of a gradient is r / n in the mean, as LoRA's at its start, and
    never more. The optimizer is PEFT's: AdamW on the gradient (1 / s^2) G_B (A A^T)^-1, which makes the update of W the
    projection of G on the row space of A. PEFT takes that product in bfloat16 wherever the device has it.
    """

    r: int
    name: ClassVar[str] = "lorafa"
    references: ClassVar[tuple[str, ...]] = ("Zhang et al. (2023), LoRA-FA, arXiv 2308.03303",)
    trained: ClassVar[tuple[str, ...]] = ("lora_B",)
    frozen: ClassVar[tuple[str, ...]] = ("lora_A",)
    cost: ClassVar[Cost] = Cost(1.23, -0.1)
    support: ClassVar[Support] = Support(vllm=True)
    reference_rate: ClassVar[float | None] = 1e-4

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    @property
    def optimizer(self) -> dict[str, Any]:
        """Freezes A."""
        return {"name": "lora-fa"}

    def peft_arguments(self) -> dict[str, Any]:
        """Plain LoRA: the difference is the optimizer."""
        return lora_arguments(self)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r m`."""
        return self.r * shape[0]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """Its optimizer reads A beside the gradient of B."""
        return (*rank_violations(self, context), *whole_factors(self, context))

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r / n`."""
        return self.r / view.in_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of a projection on r random rows."""
        return random_rows_spread(self.r, view.in_features)

    def displacement(self, view: LayerStatistics) -> float:
        """LoRA's: at B = 0 only B moves there too, and a sign step does not see the preconditioner's size."""
        return random_start_displacement(self.scale, self.r, view)
