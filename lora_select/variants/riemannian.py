"""LoRA with gradients preconditioned by the other factor."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    REFERENCE_ALPHA,
    UNMEASURED,
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
class Riemannian(ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and random A; AdamW on g_A -> (B^T B + d I)^-1 g_A and g_B alike.

    The r x r preconditioners make the step of W independent of how B A is split into factors. Tangent space and share at the
    start are LoRA's, r / n: only the metric differs. As published (Zhang, Pilanci, equation 2), with PEFT's damping d = 0.01;
    an entry-wise optimizer after the preconditioner keeps its direction and not its length.
    """

    r: int
    damping: float = 1e-2
    name: ClassVar[str] = "riemannian"
    references: ClassVar[tuple[str, ...]] = ("Zhang, Pilanci (2024), Riemannian Preconditioned LoRA, arXiv 2402.02347",)
    cost: ClassVar[Cost] = UNMEASURED
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
        """AdamW behind the preconditioner."""
        return {"name": "riemannian", "damping": self.damping}

    def peft_arguments(self) -> dict[str, Any]:
        """Plain LoRA: the difference is the optimizer."""
        return lora_arguments(self)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """Its optimizer reads both factors of a layer."""
        return (*rank_violations(self, context), *whole_factors(self, context))

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r / n`."""
        return self.r / view.in_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of a projection on r random rows."""
        return random_rows_spread(self.r, view.in_features)

    def displacement(self, view: LayerStatistics) -> float:
        """LoRA's: a sign step has unit entries whatever the preconditioner."""
        return random_start_displacement(self.scale, self.r, view)
