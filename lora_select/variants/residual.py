"""What initialisations have in common: the rules they obey, and shares of which nothing is known. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from lora_select.spectral.statistics import ADAPTER_RANKS
from lora_select.variants.base import Context, Variant
from lora_select.variants.low_rank import LowRank

UNKNOWN = 1.0
"""The error of a share that nobody measured: as wide as its range."""
GRADIENT_DIRECTIONS = 2 * ADAPTER_RANKS[-1]
"""How many singular directions of the gradient the spectral pass keeps, where the layer has that many."""


@dataclass(frozen=True)
class Residual(LowRank):
    """W(theta) = (W - s B0 A0) + s B A: abstract. The start B0 A0 is taken off the base, so that the function does not move.

    PEFT is told plain LoRA and our factors are loaded over it; the trained adapter is exported as plain LoRA of rank 2 r on the
    pristine base.
    """

    export_rank_factor = 2

    def violations(self, context: Context) -> tuple[str, ...]:
        """The base may change, and can: a quantised one cannot hold what is left of it."""
        found = list(super().violations(context))
        if not context.allow_modified_base:
            found.append(f"{self.name} trains on a changed base, and allow_modified_base is false")
        if context.quantized_base:
            found.append(
                f"{self.name} subtracts its start from the weights, which a {context.quantized_base} base cannot hold"
            )
        return tuple(found)


def gradient_violations(variant: Variant, context: Context, needed: int) -> tuple[str, ...]:
    """A start that needs singular directions of the gradient: the layer has them, and the spectral pass keeps them."""
    found = []
    if needed > context.narrowest:
        found.append(
            f"{variant.name} at r {variant.r} needs {needed} singular directions of the gradient, and "
            f"{context.narrowest_layer} has {context.narrowest}; lower r or drop the layer from the targets"
        )
    if needed > GRADIENT_DIRECTIONS:
        found.append(
            f"{variant.name} at r {variant.r} needs {needed} singular directions of the gradient, and the spectral pass "
            f"keeps {GRADIENT_DIRECTIONS}; lower r"
        )
    return tuple(found)


def both_sides(left: float, right: float, both: float) -> float:
    """Share of the tangent space {dB A + B dA}: ||P_B G||^2 + ||G P_A||^2 - ||P_B G P_A||^2 over ||G||^2."""
    return left + right - both


def random_both_sides(r_out: float, m: int, r_in: float, n: int) -> float:
    """The same for independent random subspaces of r_out in R^m and r_in in R^n dimensions, the mean over them.

    Example:
        >>> random_both_sides(4, 4, 1, 8), random_both_sides(2, 4, 4, 8)
        (1.0, 0.75)
    """
    return 1 - (1 - r_out / m) * (1 - r_in / n)


def measured(shares: Mapping[int, float], r: int, null: float) -> float:
    """The share at rank r, or that of white noise where the pass did not measure it."""
    return shares.get(r, null)
