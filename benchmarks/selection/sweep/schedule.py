"""Which run comes next: a pure function of what is done, so that a sweep resumes anywhere and can be split over processes.

Rates are a factor of about 3 apart. A candidate starts near the rate that equal displacement predicts from LoRA's best one, and
neighbours are added while the best rate is an end: an optimum that is not inside what was run is never reported as one. Every
rate also gets a run of a quarter of the steps with its own schedule, which is what a race sees. The best rate gets two more seeds.
"""

import math
from collections.abc import Mapping

from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.table import Run, Table

GRID = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
SEEDS = (1, 2)
RUNG = 0.25
FIRST_RATE = 1e-3
BASELINES = (Run("lora-all-linear-r8", 1e-4, 0), Run(REFERENCE, 2e-4, 0), Run(REFERENCE, 3e-4, 0))
"""The trainers' defaults, run as they are."""


def next_run(table: Table, candidate: str, ratio: float, *, repeats: bool, rungs: bool = True) -> Run | None:
    """The next run of a candidate on a setting, None when it is complete.

    Args:
        table: what is done.
        candidate: its key.
        ratio: predicted best rate over LoRA's.
        repeats: also the other seeds of the best rate, and the baselines; LoRA's seeds are always run, since their spread is the
            unit of every regret.
        rungs: also the short runs.
    """
    done = {rate: loss for rate, loss in table.rates(candidate).items() if rate in GRID}
    rate = next_rate(done) if done else nearest(ratio * best_rate(table.rates(REFERENCE), FIRST_RATE))
    wanted = [Run(candidate, rate, 0)] if rate is not None else []
    if rate is None and (repeats or candidate == REFERENCE):
        wanted += [Run(candidate, best_rate(done, FIRST_RATE), seed) for seed in SEEDS]
    if rate is None and repeats and candidate == REFERENCE:
        wanted += list(BASELINES)
    wanted += [Run(candidate, rate, 0, RUNG) for rate in done if rungs]
    return next((run for run in wanted if run not in table.outcomes), None)


def next_rate(done: Mapping[float, float]) -> float | None:
    """The neighbour of the best rate that is to be tried next; None when the best is inside or at the grid's end."""
    done = {rate: loss for rate, loss in done.items() if rate in GRID}
    place = GRID.index(best_rate(done, FIRST_RATE))
    for neighbour in (place + 1, place - 1):
        if 0 <= neighbour < len(GRID) and GRID[neighbour] not in done:
            return GRID[neighbour]
    return None


def best_rate(losses: Mapping[float, float], otherwise: float) -> float:
    """The rate of the lowest loss; the smaller one of equals."""
    return min(losses, key=lambda rate: (losses[rate], rate), default=otherwise)


def nearest(rate: float) -> float:
    """The grid's nearest rate, by ratio."""
    return min(GRID, key=lambda known: abs(math.log(known / rate)))
