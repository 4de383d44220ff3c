"""Context-oriented decomposition, knowledge-preserved."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

from lora_select.variants.base import Context, Cost, Support, Variant, lora_arguments
from lora_select.variants.residual import oriented_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class CorDAKnowledge(Variant):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = U_r S_r V_r^T C^-1 of W C = U S V^T, the r smallest, s = alpha / r = 1.

    C is the inputs' second moment; s B0 A0 = U_r U_r^T W. What the inputs use least is trained, so that the
    rest is kept; the authors take inputs of the knowledge to keep, these are the task's own.
    Tangent at the start: {s (dB A + B dA)}; the spectral pass does not decompose W C as well, so its share of a gradient is
    not known. As published (Yang et al., section 3) with C centred and by its leading eigenpairs, damped as in the authors'
    code. The trained adapter is exported as plain LoRA of rank 2 r.
    """

    r: int
    name: ClassVar[str] = "corda_kpm"
    references: ClassVar[tuple[str, ...]] = ("Yang et al. (2024), CorDA, arXiv 2406.05223",)
    cost: ClassVar[Cost] = Cost(1.0, 0.0, "as LoRA once started")
    support: ClassVar[Support] = Support(vllm=True)
    reference_rate: ClassVar[float | None] = 3e-5
    rate_source: ClassVar[str] = (
        "LoRA's reference over 10, which arXiv 2602.04998 measured for PiSSA (nobody measured CorDA)"
    )
    init: ClassVar[str] = "corda_kpm"
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
        """Those of a start that changes the base, and measured activation directions."""
        return oriented_violations(self, context)
