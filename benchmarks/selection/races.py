"""Races on what the sweep has run, by the product's own rule: short ones of a quarter of the steps, and full-length ones."""

import itertools
import random
from collections.abc import Mapping, Sequence

from benchmarks.selection.candidates import REFERENCE
from benchmarks.selection.case import EVA, MLP, Case, Choice
from benchmarks.selection.schedule import RUNG, nearest
from benchmarks.selection.table import Run, Table
from lora_select.records import Probe, Race
from lora_select.selection import standing
from lora_select.selection.calibration import rate_shift

SHORTLIST = 3
"""Entrants beside the reference in a short race."""
DRAWS = 30


def shortlist(case: Case) -> list[Choice]:
    """Short: the reference, LoRA on the feed-forward layers, and the largest tangent shares."""
    return _short(case, _by_share(case, case.shares))


def permuted(case: Case) -> list[Choice]:
    """The same with the tangent shares dealt out anew: what is left when the spectra say nothing."""
    drawn, keys, values = random.Random(0), list(case.shares), list(case.shares.values())
    deals = [dict(zip(keys, drawn.sample(values, len(keys)), strict=True)) for _ in range(DRAWS)]
    return list(itertools.chain.from_iterable(_short(case, _by_share(case, deal)) for deal in deals))


def first(case: Case) -> list[Choice]:
    """Short, without the spectral stage: the first variants of the list."""
    return _short(case, _rivals(case))


def drawn(case: Case) -> list[Choice]:
    """Short: variants drawn at random."""
    source, rivals = random.Random(0), _rivals(case)
    draws = [source.sample(rivals, len(rivals)) for _ in range(DRAWS)]
    return list(itertools.chain.from_iterable(_short(case, draw) for draw in draws))


def rates(case: Case) -> list[Choice]:
    """Short: the reference's three rates."""
    return _race(case, [], RUNG)


def full_rates(case: Case) -> list[Choice]:
    """Full length: the reference's three rates."""
    return _race(case, [], 1.0)


def full_aligned(case: Case) -> list[Choice]:
    """Full length: three rates of the reference and, where its tangent share is twice LoRA's, of EVA."""
    if not case.shares or (case.aligned() and EVA not in case.candidates):
        return []
    return _race(case, [EVA] if case.aligned() else [], 1.0)


def full_drawn(case: Case) -> list[Choice]:
    """Full length: three rates of the reference and of one other, each other in turn."""
    return list(itertools.chain.from_iterable(_race(case, [rival], 1.0) for rival in _rivals(case)))


def _rivals(case: Case) -> list[str]:
    return [key for key in case.candidates if key != REFERENCE]


def _by_share(case: Case, shares: Mapping[str, float]) -> list[str]:
    others = sorted((key for key in _rivals(case) if key != MLP), key=lambda key: -shares.get(key, 0.0))
    return [key for key in (MLP, *others) if key in case.candidates]


def _short(case: Case, others: Sequence[str]) -> list[Choice]:
    """A race of the reference and the first of `others`; none where the sweep has too few for a full shortlist."""
    return _race(case, others[:SHORTLIST], RUNG) if len(others) >= SHORTLIST else []


def _race(case: Case, others: Sequence[str], share: float) -> list[Choice]:
    """The rates are the predicted one and its neighbours, as far as they were run."""
    keys = [REFERENCE, *others]
    wanted = [Run(key, nearest(case.rate(key) * factor), 0, share) for key in keys for factor in (1 / 3, 1.0, 3.0)]
    runs = [run for run in wanted if run in case.table.outcomes]
    base = case.table.base
    if base is None or not any(run.candidate == REFERENCE for run in runs):
        return []
    made = Race(
        profile_digest="",
        spectra_digest="",
        budget=0.0,
        planned_steps=case.table.setting.steps,
        rungs=(round(share * case.table.setting.steps),),
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
    rate = nearest(found.learning_rate * rate_shift(share, case.constants))
    return case.known([Choice(Run(found.key, rate, 0), share * len(runs))])


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
