"""Races on what the sweep has run, by the product's own rule: probes as long as the training, and shorter ones."""

import dataclasses
import itertools
import random
from collections.abc import Callable, Sequence

from benchmarks.selection.case import EVA, MLP, Case, Choice, Strategy, base_loss
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.schedule import nearest
from benchmarks.selection.sweep.table import Run, Table
from lora_select.records import Race, Trial
from lora_select.selection.calibration import rate_shift
from lora_select.selection.prediction import raced_gain
from lora_select.selection.race import FACTORS, MINIMUM_STEPS, MOST_ENTRANTS, decide

DRAWS = 30
Order = Callable[[Case], list[list[str]]]
"""Rivals of the reference, the first to race first; several equally likely orders where they are drawn."""


def alone(_case: Case) -> list[list[str]]:
    """No rival: the reference's three rates."""
    return [[]]


def by_share(case: Case) -> list[list[str]]:
    """EVA where its tangent share is twice LoRA's, LoRA on the feed-forward layers, the largest shares: the product's order."""
    return [_by_share(case)]


def permuted(case: Case) -> list[list[str]]:
    """The same with the tangent shares dealt out anew: what is left when the spectra say nothing."""
    source, keys, values = random.Random(0), list(case.shares), list(case.shares.values())
    deals = [dict(zip(keys, source.sample(values, len(keys)), strict=True)) for _ in range(DRAWS)]
    return [_by_share(dataclasses.replace(case, shares=deal)) for deal in deals]


def drawn(case: Case) -> list[list[str]]:
    """At random: no spectral stage."""
    source, rivals = random.Random(0), _rivals(case)
    return [source.sample(rivals, len(rivals)) for _ in range(DRAWS)]


def race(order: Order, entrants: int, share: float | None = 1.0, *, retention: bool = False) -> Strategy:
    """The reference and the first of `order`, three rates each; none where the sweep has too few.

    Args:
        order: of the rivals.
        entrants: with the reference.
        share: of the planned steps that a probe has; None: the shortest probe that the product allows.
        retention: as `selection.prefer_retention`.
    """

    def choose(case: Case) -> list[Choice]:
        swept = set(case.candidates)
        orders = [
            found for found in order(case) if len(found) >= entrants - 1 and swept.issuperset(found[: entrants - 1])
        ]
        made = (_race(case, found[: entrants - 1], share, retention=retention) for found in orders)
        return list(itertools.chain.from_iterable(made))

    return choose


def single_rates(case: Case) -> list[Choice]:
    """As many probes as the reference's rates are: the reference and random variants, each at its predicted rate alone."""
    orders = [found[: len(FACTORS) - 1] for found in drawn(case) if len(found) >= MOST_ENTRANTS - 1]
    return list(itertools.chain.from_iterable(_race(case, found, 1.0, factors=(1.0,)) for found in orders))


def _rivals(case: Case) -> list[str]:
    return [key for key in case.candidates if key != REFERENCE]


def _by_share(case: Case) -> list[str]:
    """Of all that the model has, run or not: what was not run is not passed over."""
    keys = [key for key in dict.fromkeys((*case.shares, *case.candidates)) if key != REFERENCE]
    clear = [EVA] if case.aligned() else []
    others = sorted(keys, key=lambda key: -case.shares.get(key, 0.0))
    return [key for key in dict.fromkeys((*clear, MLP, *others)) if key in keys]


def _race(
    case: Case,
    others: Sequence[str],
    share: float | None,
    factors: Sequence[float] = FACTORS,
    *,
    retention: bool = False,
) -> list[Choice]:
    """The rates are the predicted one and its neighbours, as far as they were run."""
    setting, base = case.table.setting, case.table.base
    share = share or min(1.0, MINIMUM_STEPS / setting.steps)
    keys = [REFERENCE, *others]
    wanted = [Run(key, nearest(case.rate(key) * factor), 0, share) for key in keys for factor in factors]
    runs = [run for run in wanted if run in case.table.outcomes]
    if base is None or not any(run.candidate == REFERENCE for run in runs):
        return []
    made = Race(
        profile_digest="",
        spectra_digest="",
        budget=0.0,
        planned_steps=setting.steps,
        rungs=(round(share * setting.steps),),
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
    found = decide(made, keys, REFERENCE, parameters, retention=retention)
    if found is None:
        return []
    rate = nearest(found.learning_rate * rate_shift(share, case.constants))
    gain = raced_gain(base_loss(case.table), made, found.key, found.learning_rate, case.constants)
    return case.known([Choice(Run(found.key, rate, 0), share * len(runs), gain, len(others))])


def _probe(table: Table, run: Run) -> Trial:
    outcome = table.outcomes[run]
    return Trial(
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
