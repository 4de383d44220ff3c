"""How well what is known early orders the candidates of a setting: Spearman's rank correlations, positive where it helps."""

import math
import statistics
from collections.abc import Sequence

from benchmarks.selection import reach
from benchmarks.selection.case import Case, best_run
from benchmarks.selection.judging import level
from benchmarks.selection.sweep.schedule import RUNG

FEWEST = 5
"""Candidates; an order of fewer says nothing."""
SHARE_RUNG = "tangent share -> loss of the rung"
SHARE_FINAL = "tangent share -> final loss"
RUNG_FINAL = "loss of the rung -> final loss"
REACH_FINAL = "reachable share of a rank-64 endpoint -> final loss"


def correlations(case: Case) -> dict[str, float]:
    """By name; empty with fewer than five candidates.

    Each candidate stands with its best rate; losses of the rung are of the even rows, final ones of the odd rows,
    means over seeds.
    """
    from scipy.stats import spearmanr

    final = {key: level(case.table, run) for key in case.candidates if (run := best_run(case.table, key))}
    rung = {key: found for key in final if (found := _rung_loss(case, key)) is not None}
    pairs = {
        SHARE_RUNG: (case.shares, rung, -1),
        SHARE_FINAL: (case.shares, final, -1),
        RUNG_FINAL: (rung, final, 1),
        REACH_FINAL: (reach.shares(case.table.setting.name), final, -1),
    }
    found = {}
    for name, (known, wanted, sign) in pairs.items():
        keys = [key for key in wanted if key in known and math.isfinite(wanted[key])]
        if len(keys) >= FEWEST:
            found[name] = sign * float(spearmanr([known[key] for key in keys], [wanted[key] for key in keys])[0])  # pyright: ignore[reportArgumentType]
    return found


def _rung_loss(case: Case, key: str) -> float | None:
    outcomes = case.table.outcomes.items()
    losses = [
        sum(outcome.held_out[::2])
        for run, outcome in outcomes
        if (run.candidate, run.seed, run.share) == (key, 0, RUNG) and outcome.held_out
    ]
    return min(losses, default=None)


def lines(cases: Sequence[Case]) -> list[str]:
    """One a predictor: median and range over the settings that can say."""
    every = [found for case in cases if (found := correlations(case))]
    result = []
    for name in (SHARE_RUNG, SHARE_FINAL, RUNG_FINAL, REACH_FINAL):
        values = [found[name] for found in every if name in found]
        if values:
            result.append(
                f"{name}: median {statistics.median(values):+.2f} [{min(values):+.2f}, {max(values):+.2f}] over {len(values)} settings"
            )
    return result
