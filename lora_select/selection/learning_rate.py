"""The learning rate of a candidate: the reference rate, moved so that the function moves as far as under LoRA."""

import math

from lora_select.selection.candidates import Candidate
from lora_select.spectral.view import RANKS
from lora_select.variants import LoRA

REFERENCE_RATE = 3e-4
"""All-linear LoRA. Regret of this constant over 35 models: 0.30 % of the loss (selection.md 2.2)."""
LOWEST, HIGHEST = 1 / 30, 3.0
"""Bounds on the transferred rate over the reference: beyond the largest known divisors, displacement is not trusted."""


def displacement_ratio(candidate: Candidate) -> float:
    """How much farther one sign step of the variant moves the function than LoRA's at the same rank; no unit.

    The geometric mean over layers of the ratio of displacements. A rank that was not measured takes the nearest measured
    one, in which the ratio is close.
    """
    r = min(RANKS, key=lambda rank: (abs(math.log(rank / candidate.variant.r)), rank))
    ours, reference = f"{candidate.variant.name}@{r}", f"{LoRA.name}@{r}"
    logs = [
        math.log(layer.displacements[ours] / layer.displacements[reference])
        for layer in candidate.layers
        if layer.displacements.get(ours, 0) > 0 and layer.displacements.get(reference, 0) > 0
    ]
    return math.exp(math.fsum(logs) / len(logs)) if logs else 1.0


def learning_rate(candidate: Candidate) -> float:
    """3e-4 over the displacement ratio, within bounds, in two significant digits."""
    factor = min(HIGHEST, max(LOWEST, 1 / displacement_ratio(candidate)))
    return float(f"{REFERENCE_RATE * factor:.1e}")
