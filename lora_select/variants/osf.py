"""Orthogonal subspace finetuning."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, common_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class OSF(Variant):
    """W(theta) = W - U0 S0 V0 + U S V, U0 S0 V0 the trailing half of W's SVD, U (m, k), S (k), V (k, n) trained from there.

    Gradients of U and V are projected off the leading half's directions. Tangent at the start: {(1 - P) dU S0 V0 + U0 dS V0 +
    U0 S0 dV (1 - P')}, P and P' the leading subspaces; its share is close to that of the minor block. Near full finetuning: k = half
    of the smaller side, (m + n + 1) k parameters. The published form (Nayak et al., section 3) for one task; Adam's entry-wise
    steps leave the projected directions a little.
    """

    r: int = field(default=0, init=False)
    name = "osf"
    references = ("Nayak et al. (2025), Sculpting Subspaces, arXiv 2504.07097",)
    peft_class = "OSFConfig"
    trained = ("osf_svd_params.U_low", "osf_svd_params.S_low", "osf_svd_params.V_low")
    frozen = (
        "_osf_U_low_init",
        "_osf_S_low_init",
        "_osf_V_low_init",
        "_osf_U_high",
        "_osf_V_high",
    )
    cost = Cost(2.8, 16.0)
    support = Support(nf4="cannot be initialised", int8="cannot be initialised")
    reference_rate = 5e-5

    @property
    def size(self) -> str:
        """The frozen share of the spectrum."""
        return "half"

    def peft_arguments(self) -> dict[str, Any]:
        """PEFT's default: half of every layer's spectrum."""
        return {"effective_rank": None}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`(m + n + 1) k`."""
        return (sum(shape) + 1) * (min(shape) - min(shape) // 2)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W - U0 S0 V0 + U S V`, with derivatives in U and V projected as PEFT's hooks do."""
        u, s, v = (theta[f"osf_svd_params.{name}_low"] for name in "USV")
        u0, s0, v0 = (theta[f"_osf_{name}_low_init"] for name in "USV")
        du, dv = u - u.detach(), v - v.detach()  # zero, with a derivative
        u_high, v_high = theta.get("_osf_U_high"), theta.get("_osf_V_high")
        du = u0 @ (u0.T @ du) if u_high is None else du - u_high @ (u_high.T @ du)
        dv = (dv @ v0.T) @ v0 if v_high is None else dv - (dv @ v_high.T) @ v_high
        return weight - u0 * s0 @ v0 + (u.detach() + du) * s @ (v.detach() + dv)

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return common_violations(self, context)
