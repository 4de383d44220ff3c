"""Principal singular values and vectors adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
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
class PiSSA(ClosedForm):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = U_r S_r V_r^T, the top of W's SVD, s = alpha / r = 1.

    Tangent at the start: U_r X + Y V_r^T, r (m + n - r) dimensions, so its share of a gradient is
    ||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2. Factors as published (Meng et al., equations 2 to 4) with an exact
    SVD; PEFT's `pissa_niter_*` reloads as another model. PEFT is told plain LoRA, our factors are loaded over it, and the
    trained adapter is exported as plain LoRA of rank 2 r on the pristine base.
    """

    r: int
    name: ClassVar[str] = "pissa"
    references: ClassVar[tuple[str, ...]] = ("Meng, Wang, Zhang (2024), PiSSA, arXiv 2404.02948",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0, "as LoRA once started")
    support: ClassVar[Support] = Support(vllm=True)
    init: ClassVar[str] = "pissa"
    export_rank_factor: ClassVar[int] = 2

    @property
    def lora_alpha(self) -> int:
        """r, as published."""
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
        """The start changes the base: not on a quantised one, not where that is forbidden."""
        found = list(rank_violations(self, context))
        if not context.allow_modified_base:
            found.append("PiSSA trains on a changed base, and allow_modified_base is false")
        if context.quantized_base:
            found.append(
                f"PiSSA subtracts its start from the weights, which a {context.quantized_base} base cannot hold"
            )
        return tuple(found)

    def tangent_share(self, view: LayerStatistics) -> float:
        """||U^T G||^2 + ||G V||^2 - ||U^T G V||^2 over ||G||^2."""
        return view.weight_left[self.r] + view.weight_right[self.r] - view.weight_both[self.r]

    def tangent_share_spread(self, view: LayerStatistics) -> float:  # noqa: ARG002
        """The start is fixed by W."""
        return 0.0

    def displacement(self, view: LayerStatistics) -> float:
        """Both factors move: mean square s sum_{k<=r} sigma_k (E(v_k . x)^2 + E||x||^2 / m)."""
        pairs = zip(view.weight_values[: self.r], view.weight_input_energy[: self.r], strict=True)
        spread = view.activation_energy / view.out_features
        moved = self.scale * sum(sigma * (energy + spread) for sigma, energy in pairs)
        return (moved / mean_square_output(view)) ** 0.5
