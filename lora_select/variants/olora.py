"""Orthonormal low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Context, Cost, Support, lora_arguments
from lora_select.variants.residual import UNKNOWN, both_sides, changed_base_violations, measured

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class OLoRA(ClosedForm):
    """W(theta) = (W - s B0 A0) + s B A from B0 = Q_r, A0 = R_r of W = Q R, s = alpha / r = 1: W's part in its first r columns.

    Tangent at the start: Q_r X + Y R_r, r (m + n - r) dimensions, so its share of a gradient is ||Q^T G||^2 + ||G V||^2 -
    ||Q^T G V||^2 over ||G||^2, V a basis of R_r's rows. As published (Büyükakyüz, section 3); PEFT's factors of a GPT-2
    `Conv1D` are those of the transposed weight and change the function, ours do not. The trained adapter is exported as plain
    LoRA of rank 2 r.
    """

    r: int
    name: ClassVar[str] = "olora"
    references: ClassVar[tuple[str, ...]] = ("Büyükakyüz (2024), OLoRA, arXiv 2406.01775",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0, "as LoRA once started")
    support: ClassVar[Support] = Support(vllm=True)
    reference_rate: ClassVar[float | None] = 1.7e-5
    rate_source: ClassVar[str] = "LoRA's reference over 18, the divisor that arXiv 2602.04998 measured"
    init: ClassVar[str] = "olora"
    export_rank_factor: ClassVar[int] = 2

    @property
    def lora_alpha(self) -> int:
        """r, so that the scale is 1."""
        return self.r

    @property
    def scale(self) -> float:
        """1."""
        return 1.0

    def peft_arguments(self) -> dict[str, Any]:
        """Plain LoRA: the factors come from a file."""
        return lora_arguments(self)

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r (m + n)`."""
        return self.r * sum(shape)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`, with the W that PEFT sees: the base less its start."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """Those of a start that changes the base."""
        return changed_base_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """||Q^T G||^2 + ||G V||^2 - ||Q^T G V||^2 over ||G||^2; of white noise where it was not measured."""
        r, m, n = self.r, view.out_features, view.in_features
        return both_sides(
            measured(view.weight_columns_left, r, r / m),
            measured(view.weight_columns_right, r, r / n),
            measured(view.weight_columns_both, r, r * r / (m * n)),
        )

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """The start is fixed by W."""
        return 0.0 if self.r in view.weight_columns_left else UNKNOWN
