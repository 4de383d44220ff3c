"""Minor component adaptation."""

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
    mean_square_output,
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class MiCA(ClosedForm):
    """W(theta) = W + s B A, s = alpha / r, B = the r trailing left singular vectors of W, frozen; A trained from 0.

    Tangent everywhere: {s B dA}, r n dimensions, so the share of a gradient is ||U^T G||^2 / ||G||^2 with U the r minor left
    singular vectors: fixed by W, no randomness. The published form, as PEFT builds it; the base is left alone.
    """

    r: int
    name: ClassVar[str] = "mica"
    references: ClassVar[tuple[str, ...]] = ("MiCA: minor component adaptation (2026), arXiv 2604.01694",)
    trained: ClassVar[tuple[str, ...]] = ("lora_A",)
    frozen: ClassVar[tuple[str, ...]] = ("lora_B",)
    cost: ClassVar[Cost] = Cost(1.04, -0.1)
    support: ClassVar[Support] = Support(vllm=True, nf4="cannot be initialised", int8="cannot be initialised")
    reference_rate: ClassVar[float | None] = 1e-4

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """LoRA with PEFT's own start of that name."""
        return lora_arguments(self, init_lora_weights="mica")

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r n`."""
        return self.r * shape[1]

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 / ||G||^2; that of white noise where it was not measured."""
        return view.weight_minor_left.get(self.r, self.r / view.out_features)

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by W; where the pass did not project on it, the share could be anything."""
        return 0.0 if self.r in view.weight_minor_left else 1.0

    def displacement(self, view: LayerStatistics) -> float:
        """A moves: mean square s^2 r E||x||^2 / m, B being orthonormal."""
        moved = self.scale**2 * self.r * view.activation_energy / view.out_features
        return (moved / mean_square_output(view)) ** 0.5
