"""Context-oriented decomposition: instruction-previewed and knowledge-preserved."""

from dataclasses import dataclass
from typing import final

from lora_select.variants.base import Context
from lora_select.variants.low_rank import AS_LORA
from lora_select.variants.residual import Residual

REFERENCE = ("Yang et al. (2024), CorDA, arXiv 2406.05223",)
RATE_SOURCE = "LoRA's reference over 10, which arXiv 2602.04998 measured for PiSSA (nobody measured CorDA)"


@dataclass(frozen=True)
class CorDA(Residual):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = U_r S_r V_r^T C^-1 of W C = U S V^T, s = alpha / r = 1: abstract.

    C is the inputs' second moment; s B0 A0 = U_r U_r^T W. As published (Yang et al., section 3) with C centred and by its
    leading eigenpairs, damped as in the authors' code.
    """

    references = REFERENCE
    reference_rate = 3e-5
    rate_source = RATE_SOURCE
    alpha_over_r = 1

    def violations(self, context: Context) -> tuple[str, ...]:
        """The inputs' directions must have been measured."""
        found = list(super().violations(context))
        if context.directions < 1:
            found.append(f"{self.name} needs measured activation directions, and the spectral pass kept none")
        return tuple(found)


@final
@dataclass(frozen=True)
class CorDAInstruction(CorDA):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = U_r S_r V_r^T C^-1 of W C = U S V^T, the r largest, s = alpha / r = 1.

    What the inputs of this task use most is trained. Tangent at the start: {s (dB A + B dA)}; the spectral pass does not
    decompose W C as well, so its share of a gradient is not known.
    """

    name = "corda_ipm"
    title = "CorDA (instruction)"
    cost = AS_LORA
    initialization = "corda_ipm"


@final
@dataclass(frozen=True)
class CorDAKnowledge(CorDA):
    """W(theta) = (W - s B0 A0) + s B A from s B0 A0 = U_r S_r V_r^T C^-1 of W C = U S V^T, the r smallest, s = alpha / r = 1.

    What the inputs use least is trained, so that the rest is kept; the authors take inputs of the knowledge to keep, these are
    the task's own. Tangent at the start: {s (dB A + B dA)}; the spectral pass does not decompose W C as well, so its share
    of a gradient is not known.
    """

    name = "corda_kpm"
    title = "CorDA (knowledge)"
    cost = AS_LORA
    initialization = "corda_kpm"
