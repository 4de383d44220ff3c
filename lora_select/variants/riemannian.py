"""LoRA with gradients preconditioned by the other factor."""

from dataclasses import dataclass
from typing import Any, final

from lora_select.variants.base import UNMEASURED, Context, whole_factors
from lora_select.variants.low_rank import RandomRows


@final
@dataclass(frozen=True)
class Riemannian(RandomRows):
    """W(theta) = W + s B A, s = alpha / r, from B = 0 and random A; AdamW on g_A -> (B^T B + d I)^-1 g_A and g_B alike.

    The r x r preconditioners make the step of W independent of how B A is split into factors. Tangent space and share at the
    start are LoRA's, r / n: only the metric differs, and a sign step has unit entries whatever the preconditioner. As
    published (Zhang, Pilanci, equation 2), with PEFT's damping d = 0.01; an entry-wise optimizer after the preconditioner
    keeps its direction and not its length.
    """

    damping: float = 1e-2
    name = "riemannian"
    title = "LoRA with a Riemannian preconditioner"
    references = ("Zhang, Pilanci (2024), Riemannian Preconditioned LoRA, arXiv 2402.02347",)
    cost = UNMEASURED
    reference_rate = 1e-4

    @property
    def optimizer(self) -> dict[str, Any]:
        """AdamW behind the preconditioner."""
        return {"name": "riemannian", "damping": self.damping}

    def violations(self, context: Context) -> tuple[str, ...]:
        """Its optimizer reads both factors of a layer."""
        return (*super().violations(context), *whole_factors(self, context))
