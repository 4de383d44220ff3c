"""Ways of choosing, each a function of one setting and of constants fitted on the others: what it would train, and what that costs.

Losses that a strategy may look at are those of the even held-out rows; it is judged by the odd ones.
"""

from benchmarks.selection import races
from benchmarks.selection.candidates import REFERENCE
from benchmarks.selection.case import EVA, Case, Choice, Strategy, best_run, seen_loss
from benchmarks.selection.table import Run

SHIPPED, PLAIN_SHORT = "short race by share (the product's race)", "short race of random variants"
TRIED, PLAIN_FULL = (
    "LoRA and EVA by its share, three full-length rates each (not shipped)",
    "LoRA and a random variant, three full-length rates each",
)
TUNED = "LoRA, best rate of the sweep"
RULES = {SHIPPED: PLAIN_SHORT, TRIED: PLAIN_FULL}
"""Ways that the claims are held against, and the race of equal cost without the spectral stage."""


def fixed(candidate: str, rate: float) -> Strategy:
    """Always the same."""
    return lambda case: case.known([Choice(Run(candidate, rate, 0))])


def predicted(case: Case) -> list[Choice]:
    """The reference at the rate that the other settings predict."""
    return case.known([Choice(Run(REFERENCE, case.rate(REFERENCE), 0))])


def aligned(case: Case) -> list[Choice]:
    """EVA where its tangent share is more than twice LoRA's, else LoRA; at the predicted rate."""
    key = EVA if case.aligned() else REFERENCE
    return case.known([Choice(Run(key, case.rate(key), 0))])


def any_variant(case: Case) -> list[Choice]:
    """A random variant at its predicted rate."""
    if len(case.candidates) < 2:
        return []
    return case.known([Choice(Run(key, case.rate(key), 0)) for key in case.candidates])


def largest_share(case: Case) -> list[Choice]:
    """The largest tangent share of all, at the predicted rate."""
    if len(case.candidates) <= races.SHORTLIST:
        return []
    key = max(case.candidates, key=lambda key: case.shares.get(key, 0.0))
    return case.known([Choice(Run(key, case.rate(key), 0))])


def tuned(case: Case) -> list[Choice]:
    """The reference at its best rate of all that were run, by the rows that a strategy may see: what a sweep of the rate alone finds."""
    runs = [Run(REFERENCE, rate, 0) for rate in case.table.rates(REFERENCE)]
    if not best_run(case.table, REFERENCE):
        return []
    return [Choice(min(runs, key=lambda run: seen_loss(case.table, run)), float(len(runs)))]


STRATEGIES: dict[str, Strategy] = {
    "LoRA r 8, 1e-4 (trainers' default)": fixed("lora-all-linear-r8", 1e-4),
    "LoRA r 16, 2e-4 (trainers' default)": fixed(REFERENCE, 2e-4),
    "LoRA r 16, 3e-4 constant": fixed(REFERENCE, 3e-4),
    "random variant, predicted rate": any_variant,
    "LoRA, predicted rate (the product's default)": predicted,
    "largest tangent share, predicted rate": largest_share,
    "EVA by its share, predicted rate": aligned,
    "short race of LoRA's three rates": races.rates,
    "short race of the first variants": races.first,
    PLAIN_SHORT: races.drawn,
    "short race by share, spectra permuted": races.permuted,
    SHIPPED: races.shortlist,
    "LoRA, three full-length rates": races.full_rates,
    PLAIN_FULL: races.full_drawn,
    TRIED: races.full_aligned,
    TUNED: tuned,
}
