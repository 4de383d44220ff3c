"""Ways of choosing, each a function of one setting and of constants fitted on the others: what it would train, and what that costs.

Losses that a strategy may look at are those of the even held-out rows; it is judged by the odd ones.
"""

from benchmarks.selection import races
from benchmarks.selection.case import EVA, Case, Choice, Strategy, best_run, seen_loss
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.schedule import RUNG
from benchmarks.selection.sweep.table import Run
from lora_select.selection.race import MOST_ENTRANTS

DEFAULT, ANY = "LoRA, predicted rate (the product's default)", "random variant, predicted rate"
SHIPPED, EQUAL = "race of LoRA's three rates (race_budget=3)", "race of LoRA and two random variants, a rate each"
LEAST = "race of LoRA's three rates, 24 steps each (least budget)"
TWO, TWO_RANDOM = "race of LoRA and EVA (race_budget=6)", "race of LoRA and a random rival"
FOUR, FOUR_RANDOM = "race of four (race_budget=12)", "race of four, rivals at random"
RETAINING, TWO_RETAINING = f"{SHIPPED}, retention preferred", f"{TWO}, retention preferred"
TUNED = "LoRA, best rate of the sweep"
RULES = {
    DEFAULT: ANY,
    SHIPPED: EQUAL,
    LEAST: EQUAL,
    RETAINING: EQUAL,
    TWO: TWO_RANDOM,
    TWO_RETAINING: TWO_RANDOM,
    FOUR: FOUR_RANDOM,
}
"""Ways that the claims are held against, and the race of equal cost without the spectral stage."""


def fixed(candidate: str, rate: float) -> Strategy:
    """Always the same."""
    return lambda case: case.known([Choice(Run(candidate, rate, 0))])


def predicted(case: Case) -> list[Choice]:
    """The reference at the rate that the other settings predict."""
    return case.known([Choice(Run(REFERENCE, case.rate(REFERENCE), 0))])


def by_rows(case: Case) -> list[Choice]:
    """LoRA with a rank by the number of rows, as was proposed to Axolotl: 8 below 1,000, 16 below 10,000, 32 below 100,000, then 64."""
    rows = case.table.setting.rows
    r = next((r for limit, r in ((1_000, 8), (10_000, 16), (100_000, 32)) if rows < limit), 64)
    key = f"lora-all-linear-r{r}"
    return case.known([Choice(Run(key, case.rate(key), 0))])


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
    if len(case.candidates) <= MOST_ENTRANTS - 1:
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
    ANY: any_variant,
    DEFAULT: predicted,
    "LoRA, rank by row count, predicted rate": by_rows,
    "largest tangent share, predicted rate": largest_share,
    "EVA by its share, predicted rate": aligned,
    "quarter-length race of LoRA's three rates": races.race(races.alone, 1, RUNG),
    "quarter-length race of four by share": races.race(races.by_share, 4, RUNG),
    "quarter-length race of four, spectra permuted": races.race(races.permuted, 4, RUNG),
    "quarter-length race of four at random": races.race(races.drawn, 4, RUNG),
    SHIPPED: races.race(races.alone, 1),
    RETAINING: races.race(races.alone, 1, retention=True),
    LEAST: races.race(races.alone, 1, None),
    EQUAL: races.single_rates,
    TWO: races.race(races.by_share, 2),
    TWO_RETAINING: races.race(races.by_share, 2, retention=True),
    TWO_RANDOM: races.race(races.drawn, 2),
    FOUR: races.race(races.by_share, 4),
    "race of four, shares permuted": races.race(races.permuted, 4),
    FOUR_RANDOM: races.race(races.drawn, 4),
    TUNED: tuned,
}
