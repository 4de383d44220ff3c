"""Ways of choosing, each a function of one setting and of constants fitted on the others: what it would train, and what that costs.

Losses that a strategy may look at are those of the even held-out rows; it is judged by the odd ones.
"""

import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.selection.candidates import REFERENCE
from benchmarks.selection.schedule import RUNG, nearest
from benchmarks.selection.table import Run, Table
from lora_select.records import Probe, Race
from lora_select.selection import standing
from lora_select.selection.calibration import Calibration, reference_rate

MLP = "lora-mlp-only-r16"
OURS, TUNED = "race of our shortlist (ours)", "LoRA, best rate of the sweep"
SHORTLIST = 3
"""Entrants beside the reference."""
RANDOM_DRAWS = 30


@final
@dataclass(frozen=True)
class Case:
    """One setting as a strategy sees it: what was run, tangent shares and rate factors by candidate, constants of the others."""

    table: Table
    shares: Mapping[str, float]
    factors: Mapping[str, float]
    constants: Calibration

    def rate(self, candidate: str) -> float:
        """The predicted rate, on the grid."""
        home = reference_rate(self.table.setting.steps, self.constants)
        return nearest(home * self.factors.get(candidate, 1.0) ** self.constants.displacement_power)

    @property
    def candidates(self) -> list[str]:
        """Those with a bracketed best rate, in the order in which they were run."""
        return [key for key in dict.fromkeys(run.candidate for run in self.table.outcomes) if best_run(self.table, key)]


@final
@dataclass(frozen=True)
class Choice:
    """A run that a strategy would make, and the probes that it ran before, in full runs."""

    run: Run
    probes: float = 0.0


Strategy = Callable[[Case], Sequence[Choice]]
"""Equally likely choices; none where the sweep has not run what the strategy asks for."""


def best_run(table: Table, candidate: str) -> Run | None:
    """The candidate's best rate at seed 0, if both neighbours on the grid were run too."""
    from benchmarks.selection.schedule import best_rate, next_rate

    losses = table.rates(candidate)
    return None if not losses or next_rate(losses) else Run(candidate, best_rate(losses, 0.0), 0)


def fixed(candidate: str, rate: float) -> Strategy:
    """Always the same."""

    def choose(case: Case) -> list[Choice]:
        run = Run(candidate, rate, 0)
        return [Choice(run)] if run in case.table.outcomes else []

    return choose


def predicted(case: Case) -> list[Choice]:
    """Ours without a race: the reference at the rate that the other settings predict."""
    return _known(case, [Choice(Run(REFERENCE, case.rate(REFERENCE), 0))])


def tuned(case: Case) -> list[Choice]:
    """The reference at its best rate: what a sweep of the rate alone finds."""
    run = best_run(case.table, REFERENCE)
    return [Choice(run, float(len(case.table.rates(REFERENCE))))] if run else []


def any_variant(case: Case) -> list[Choice]:
    """A random variant at its predicted rate."""
    if len(case.candidates) < 2:
        return []
    return _known(case, [Choice(Run(key, case.rate(key), 0)) for key in case.candidates])


def raced(case: Case) -> list[Choice]:
    """Ours with a race: the reference, LoRA on the feed-forward layers, and the largest tangent shares."""
    return _race_of(case, _shortlist(case, case.shares))


def permuted(case: Case) -> list[Choice]:
    """The same with the tangent shares dealt out anew: what is left when the spectra say nothing."""
    drawn, keys = random.Random(0), list(case.shares)
    deals = [
        dict(zip(keys, drawn.sample(list(case.shares.values()), len(keys)), strict=True)) for _ in range(RANDOM_DRAWS)
    ]
    return list(itertools.chain.from_iterable(_race_of(case, _shortlist(case, deal)) for deal in deals))


def _shortlist(case: Case, shares: Mapping[str, float]) -> list[str]:
    others = sorted((key for key in case.candidates if key not in (REFERENCE, MLP)), key=lambda k: -shares.get(k, 0.0))
    return [key for key in (MLP, *others) if key in case.candidates]


def plain_race(case: Case) -> list[Choice]:
    """The same race without the spectral stage: the first variants of the list."""
    return _race_of(case, [key for key in case.candidates if key != REFERENCE])


def rate_race(case: Case) -> list[Choice]:
    """Only the reference's three rates race."""
    return _race(case, [])


def random_race(case: Case) -> list[Choice]:
    """A random shortlist and the same race."""
    others = [key for key in case.candidates if key != REFERENCE]
    drawn = random.Random(0)
    draws = [drawn.sample(others, len(others)) for _ in range(RANDOM_DRAWS)]
    return list(itertools.chain.from_iterable(_race_of(case, draw) for draw in draws))


STRATEGIES: dict[str, Strategy] = {
    "LoRA r 8, 1e-4 (trainers' default)": fixed("lora-all-linear-r8", 1e-4),
    "LoRA r 16, 2e-4 (trainers' default)": fixed(REFERENCE, 2e-4),
    "LoRA r 16, 3e-4 constant": fixed(REFERENCE, 3e-4),
    "random variant, predicted rate": any_variant,
    "LoRA, predicted rate (ours, no race)": predicted,
    "LoRA, race of three rates": rate_race,
    "race of the first variants": plain_race,
    "race of random variants": random_race,
    "race of our shortlist, spectra permuted": permuted,
    OURS: raced,
    TUNED: tuned,
}


def _known(case: Case, choices: Sequence[Choice]) -> list[Choice]:
    return [choice for choice in choices if choice.run in case.table.outcomes]


def _race_of(case: Case, others: Sequence[str]) -> list[Choice]:
    """A race of the reference and the first of `others`; none where the sweep has too few for a full shortlist."""
    return _race(case, others[:SHORTLIST]) if len(others) >= SHORTLIST else []


def _race(case: Case, others: Sequence[str]) -> list[Choice]:
    """The product's own rule on the rungs of the sweep; the rates are the predicted one and its neighbours, as far as they were run."""
    keys = [REFERENCE, *others]
    runs = [
        Run(key, nearest(case.rate(key) * factor), 0, RUNG)
        for key in keys
        for factor in (1 / 3, 1.0, 3.0)
        if Run(key, nearest(case.rate(key) * factor), 0, RUNG) in case.table.outcomes
    ]
    base = case.table.base
    if base is None or not any(run.candidate == REFERENCE for run in runs):
        return []
    made = Race(
        profile_digest="",
        spectra_digest="",
        budget=0.0,
        planned_steps=case.table.setting.steps,
        rungs=(round(RUNG * case.table.setting.steps),),
        labels=base.labels[::2],
        base_held_out=base.held_out[::2],
        base_reference=base.reference,
        probes=tuple(_probe(case.table, run) for run in runs),
        dropped={},
        cost=0.0,
        seconds=0.0,
        notes=(),
    )
    parameters = {run.candidate: case.table.outcomes[run].parameters for run in runs}
    found = standing.decide(made, keys, REFERENCE, parameters)
    if found is None:
        return []
    run = Run(found.key, nearest(found.learning_rate * case.constants.rung_shift), 0)
    return [Choice(run, RUNG * len(runs))] if run in case.table.outcomes else []


def _probe(table: Table, run: Run) -> Probe:
    outcome = table.outcomes[run]
    return Probe(
        key=run.candidate,
        learning_rate=run.rate,
        steps=outcome.steps,
        seed=run.seed,
        held_out=outcome.held_out[::2],
        reference=outcome.reference,
        train=(),
        tokens=0,
        seconds=outcome.seconds,
    )
