"""Full-rank adaptation by scaled random bases."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import ClosedForm, Context, Cost, Support, rank_violations

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class RandLoRA(ClosedForm):
    """W(theta) = W + s sum_j B_j diag(l_j) A diag(g_j), s = alpha / r, A and B_j random, frozen and shared, from l = 0.

    k = ceil(min(m, n) / r) bases of rank r make the update full-rank. Tangent at the start: only l moves, r k (about min(m, n))
    dimensions out of m n, so a gradient that does not know the bases has the share min(m, n) / (m n). The published form
    (Albert et al., equation 3) but for the order in which PEFT 0.21 pairs columns of B with rows of A, a permutation of random bases.
    """

    r: int
    name = "randlora"
    references = ("Albert et al. (2025), RandLoRA, arXiv 2502.00987",)
    peft_class = "RandLoraConfig"
    trained = ("randlora_lambda", "randlora_gamma")
    frozen = ("randlora_A", "randlora_B")
    cost = Cost(1.51, 0.5)
    support = Support()
    reference_rate = 1e-4

    @property
    def lora_alpha(self) -> int:
        """20 r, PEFT's default at its default rank and the paper's scale."""
        return 20 * self.r

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """The bases are saved: their generator need not be the same elsewhere."""
        banks = {"save_projection": True, "randlora_dropout": 0.0, "bias": "none"}
        return banks | {"r": self.r, "randlora_alpha": self.lora_alpha}

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`k (r + min(m, n))`."""
        return self._bases(shape) * (self.r + min(shape))

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B diag(l) A diag(g)`, transposed where m < n: the trained side is the smaller one."""
        m, n = weight.shape
        count = self._bases((m, n))
        a = theta["randlora_lambda"][:, :, None] * theta["randlora_A"][:, :, : min(m, n)] * theta["randlora_gamma"]
        b = theta["randlora_B"][: max(m, n), :count]  # max, k, r
        update = b.flatten(1) @ a.flatten(0, 1)
        return weight + self.scale * (update if n <= m else update.T)

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return rank_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`k r / (m n)`, the mean over bases whose entries are symmetric and independent, whatever the gradient."""
        shape = (view.out_features, view.in_features)
        return self._bases(shape) * self.r / (shape[0] * shape[1])

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of r random rows, each with a random subspace of k columns: at most that of a rank-one G."""
        p, q = sorted((view.out_features, view.in_features))
        k = self._bases((p, q))
        return (self.r * 3 / (p * (p + 2)) * k * (k + 2) / (q * (q + 2))) ** 0.5

    def _bases(self, shape: tuple[int, int]) -> int:
        return -(-min(shape) // self.r)
