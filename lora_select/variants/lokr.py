"""Low-rank Kronecker product."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    Context,
    Cost,
    common_violations,
    mean_square_output,
)
from lora_select.variants.low_rank import FactorProduct

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class LoKr(FactorProduct):
    """W(theta) = W + s C x (B A), Kronecker product, s = alpha / r, C (m1, n1) from 0, B A (m / m1, n / n1) random.

    m1 and n1 are the divisors of m and n next below their square roots; B A is one dense matrix where r is at least half its
    larger side. Tangent at the start: {s dC x (B A)}, m1 n1 dimensions, so the mean share over starts is m1 n1 / (m n), whatever
    the gradient. The published form (Yeh et al., LyCORIS, section 3.3), with PEFT's start.
    """

    name = "lokr"
    references = ("Yeh et al. (2023), LyCORIS, arXiv 2309.14859",)
    peft_class = "LoKrConfig"
    trained = ("lokr_w1", "lokr_w2", "lokr_w2_a", "lokr_w2_b")
    cost = Cost(1.37, 1.3)
    reference_rate = 3e-3

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`m1 n1 + r (m2 + n2)`, or `m1 n1 + m2 n2` where the second factor is dense."""
        (m1, m2), (n1, n2) = _split(shape[0]), _split(shape[1])
        return m1 * n1 + (m2 * n2 if self._dense(m2, n2) else self.r * (m2 + n2))

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s C x (B A)`."""
        import torch

        second = theta["lokr_w2"] if "lokr_w2" in theta else theta["lokr_w2_a"] @ theta["lokr_w2_b"]
        return weight + self.scale * torch.kron(theta["lokr_w1"], second)

    def violations(self, context: Context) -> tuple[str, ...]:
        """None of its own."""
        return common_violations(self, context)

    def tangent_share(self, view: LayerStatistics) -> float:
        """`m1 n1 / (m n)`."""
        return 1 / (_split(view.out_features)[1] * _split(view.in_features)[1])

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """At most that of a rank-one gradient against a rank-one B A, whose squares of cosines have mean 1/m2 and 1/n2."""
        m2, n2 = _split(view.out_features)[1], _split(view.in_features)[1]
        return (9 / (m2 * (m2 + 2) * n2 * (n2 + 2))) ** 0.5

    def displacement(self, view: LayerStatistics) -> float:
        """C moves: mean square s^2 v E||x||^2, v the variance of an entry of B A: 1 / (9 n2), or 1 / (3 n2) if dense."""
        m2, n2 = _split(view.out_features)[1], _split(view.in_features)[1]
        variance = 1 / ((3 if self._dense(m2, n2) else 9) * n2)
        return (self.scale**2 * variance * view.activation_energy / mean_square_output(view)) ** 0.5

    def _dense(self, m2: int, n2: int) -> bool:
        return self.r >= max(m2, n2) / 2


def _split(side: int) -> tuple[int, int]:
    """The factors of a side nearest its square root, the smaller first."""
    small = next(d for d in range(int(side**0.5), 0, -1) if side % d == 0)
    return small, side // small
