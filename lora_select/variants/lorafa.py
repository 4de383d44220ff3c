"""LoRA with a frozen A."""

from dataclasses import dataclass
from typing import Any, final

from lora_select.variants.base import Context, Cost, whole_factors
from lora_select.variants.low_rank import RandomRows


@final
@dataclass(frozen=True)
class LoRAFA(RandomRows):
    """W(theta) = W + s B A, s = alpha / r, from B = 0; A stays the random start and only B is trained.

    Tangent everywhere: {s dB A}, r m dimensions, so the share of a gradient is r / n in the mean, as LoRA's at its start, and
    never more. The optimizer is PEFT's: AdamW on the gradient (1 / s^2) G_B (A A^T)^-1, which makes the update of W the
    projection of G on the row space of A. PEFT takes that product in bfloat16 wherever the device has it. A sign step does
    not see the preconditioner's size, so the displacement is LoRA's.
    """

    name = "lorafa"
    title = "LoRA-FA"
    references = ("Zhang et al. (2023), LoRA-FA, arXiv 2308.03303",)
    trained = ("lora_B",)
    frozen = ("lora_A",)
    cost = Cost(1.23, -0.1)
    reference_rate = 1e-4

    @property
    def optimizer(self) -> dict[str, Any]:
        """Freezes A."""
        return {"name": "lora-fa"}

    def violations(self, context: Context) -> tuple[str, ...]:
        """Its optimizer reads A beside the gradient of B."""
        return (*super().violations(context), *whole_factors(self, context))
