"""What the low-rank variants share: the form W + s B A, its size, its scale and PEFT's arguments, written once."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from lora_select.spectral.statistics import LayerStatistics
from lora_select.variants.base import (
    REFERENCE_ALPHA,
    ClosedForm,
    Context,
    Cost,
    Support,
    Variant,
    random_rows_spread,
    random_start_displacement,
    rank_violations,
)

if TYPE_CHECKING:
    from torch import Tensor

AS_LORA = Cost(1.0, 0.0, "as LoRA once initialised")
"""The cost of a variant that is plain LoRA but for its initialisation."""


@dataclass(frozen=True)
class LowRank(Variant):
    """W(theta) = W + s B A, A (r, n) and B (m, r): abstract, its variants say how A and B begin and what trains them.

    s = alpha / r, or alpha / sqrt(r) where `rank_stabilised`. Of the two factors those in `trained` are trained.
    """

    r: int
    support = Support(plain_lora=True)
    alpha: ClassVar[int] = REFERENCE_ALPHA
    """PEFT's `lora_alpha`, the same at every rank."""
    alpha_over_r: ClassVar[int | None] = None
    """Takes the place of `alpha` where it grows with the rank: alpha = `alpha_over_r` r."""
    rank_stabilised: ClassVar[bool] = False
    """Kalajdzievski's scale, alpha / sqrt(r)."""
    peft_initialization: ClassVar[bool | str] = True
    """PEFT's `init_lora_weights`; factors of `initialization` are loaded over it."""

    @property
    def lora_alpha(self) -> int:
        """`alpha`, or `alpha_over_r` r."""
        return self.alpha if self.alpha_over_r is None else self.alpha_over_r * self.r

    @property
    def scale(self) -> float:
        """`alpha / r`, or `alpha / sqrt(r)`, no unit."""
        return self.lora_alpha / (self.r**0.5 if self.rank_stabilised else self.r)

    def peft_arguments(self) -> dict[str, Any]:
        """Of `LoraConfig`: factors on both sides, no dropout, no bias."""
        plain = {"r": self.r, "lora_alpha": self.lora_alpha, "lora_dropout": 0.0, "bias": "none"}
        stabilised = {"use_rslora": True} if self.rank_stabilised else {}
        return plain | {"init_lora_weights": self.peft_initialization} | stabilised

    def num_parameters(self, shape: tuple[int, int]) -> int:
        """`r n` for a trained A and `r m` for a trained B."""
        sides = zip(("lora_B", "lora_A"), shape, strict=True)
        return self.r * sum(side for name, side in sides if name in self.trained)

    def weight_of(self, weight: "Tensor", theta: "Mapping[str, Tensor]") -> "Tensor":
        """`W + s B A`, with the W that PEFT sees."""
        return weight + self.scale * theta["lora_B"] @ theta["lora_A"]

    def violations(self, context: Context) -> tuple[str, ...]:
        """Of every update of rank r."""
        return rank_violations(self, context)


class RandomRows(LowRank, ClosedForm):
    """A low-rank variant from B = 0 and PEFT's random A: abstract. Its tangent is {s dB A}, whatever the optimizer."""

    def tangent_share(self, view: LayerStatistics) -> float:
        """`r / n`."""
        return self.r / view.in_features

    def tangent_share_spread(self, view: LayerStatistics) -> float:
        """Of a projection on r random rows."""
        return random_rows_spread(self.r, view.in_features)

    def displacement(self, view: LayerStatistics) -> float:
        """Of a random A and B = 0: a sign step moves B alone."""
        return random_start_displacement(self.scale, self.r, view)


@dataclass(frozen=True)
class FactorProduct(ClosedForm):
    """W plus s times a product of factors of rank r that is not B A (Hadamard's, Kronecker's): abstract, with LyCORIS's arguments."""

    r: int
    support = Support(nf4="fails in the forward pass")

    @property
    def lora_alpha(self) -> int:
        """As LoRA."""
        return REFERENCE_ALPHA

    @property
    def scale(self) -> float:
        """`alpha / r`, no unit."""
        return self.lora_alpha / self.r

    def peft_arguments(self) -> dict[str, Any]:
        """PEFT calls alpha `alpha` here."""
        return {"r": self.r, "alpha": self.lora_alpha, "rank_dropout": 0.0, "module_dropout": 0.0}
