"""One vector for all adapters."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class UniLoRA(Variant):
    """W(theta) = W + B A, every entry of every A and B a fixed random entry of one vector, over the root of its uses.

    Tangent: of LoRA at a point where no factor is zero, restricted to the shared vector; its share depends on all layers at once,
    so a layer has none of its own, and the vector is counted once for the model. It starts within 0.02, so the function moves a
    little. The published form (Li et al., Uni-LoRA, section 3.2), with the vector length of PEFT's tuned run.
    """

    r: int
    length: int = 131072
    name = "unilora"
    title = "Uni-LoRA"
    references = ("Li et al. (2025), Uni-LoRA, arXiv 2506.00799",)
    peft_class = "UniLoraConfig"
    trained = ("unilora_theta_d",)
    frozen = (
        "unilora_indices_A",
        "unilora_indices_B",
        "unilora_scales_A",
        "unilora_scales_B",
    )
    starts_at_base = False
    cost = Cost(1.14, 0.0)
    support = Support()
    reference_rate = 2e-3

    @property
    def shared_parameters(self) -> int:
        """The vector."""
        return self.length

    def peft_arguments(self) -> dict[str, Any]:
        """The places are saved: their generator need not be the same elsewhere."""
        return {"r": self.r, "theta_d_length": self.length, "unilora_dropout": 0.0, "save_indices": True}

    def num_parameters(self, shape: tuple[int, int]) -> int:  # noqa: ARG002
        """0: the vector belongs to no layer."""
        return 0

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + B A`."""
        vector = theta["unilora_theta_d"]
        a = vector[theta["unilora_indices_A"]] * theta["unilora_scales_A"]
        b = vector[theta["unilora_indices_B"]] * theta["unilora_scales_B"]
        return weight + b @ a

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)
