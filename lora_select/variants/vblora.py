"""Vector-bank low-rank adaptation."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.variants.base import Context, Cost, Support, Variant, divides, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class VBLoRA(Variant):
    """W(theta) = W + B A, every piece of v entries of A and B a softmax mixture of the k best of h shared vectors.

    Tangent: within the k vectors that are chosen now, in the logits and in the bank; which are chosen does not move, so what the
    tangent sees is piecewise. Its share has no closed form: the bank, shared by all layers, decides. The start moves the function a
    little (vectors within 0.02). The published form (Li et al., section 3.3), with PEFT's softmax over the chosen only.
    """

    r: int
    num_vectors: int = 256
    vector_length: int = 64
    topk: int = 2
    name = "vblora"
    title = "VB-LoRA"
    references = ("Li, Han, Ji (2024), VB-LoRA, arXiv 2405.15179",)
    peft_class = "VBLoRAConfig"
    trained = ("vblora_logits_A", "vblora_logits_B", "vblora_vector_bank")
    starts_at_base = False
    cost = Cost(1.27, 0.0)
    support = Support()
    reference_rate = 5e-4

    @property
    def shared_parameters(self) -> int:
        """`h v`, the bank."""
        return self.num_vectors * self.vector_length

    def peft_arguments(self) -> dict[str, Any]:
        """All logits are kept, so that training can be resumed."""
        bank = {"num_vectors": self.num_vectors, "vector_length": self.vector_length, "topk": self.topk}
        return bank | {"r": self.r, "vblora_dropout": 0.0, "save_only_topk_weights": False, "bias": "none"}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r h (m + n) / v`, the logits."""
        return self.r * self.num_vectors * sum(shape) // self.vector_length

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + B A`."""
        bank = theta["vblora_vector_bank"]
        a = self._mixed(theta["vblora_logits_A"], bank)  # r, n / v, v
        b = self._mixed(theta["vblora_logits_B"], bank)  # m / v, r, v
        return weight + b.transpose(1, 2).flatten(0, 1) @ a.flatten(1)

    def violations(self, context: Context) -> tuple[str, ...]:
        """V must divide both sides of every layer."""
        found = list(rank_violations(self, context))
        for name, m, n in context.layers:
            found += divides("vblora's vector length", self.vector_length, m, name, "outputs")
            found += divides("vblora's vector length", self.vector_length, n, name, "inputs")
        return tuple(found)

    def _mixed(self, logits: "Tensor", bank: "Tensor") -> "Tensor":
        best, chosen = logits.topk(self.topk, dim=-1)
        return (best.softmax(-1)[..., None] * bank[chosen]).sum(-2)
