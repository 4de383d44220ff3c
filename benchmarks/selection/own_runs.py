"""What past runs of a base model say about the shipped learning rate: a factor on it. Tried, and not built into the product: docs/log.md, 2026-11-30.

The model: a training at a learning rate whose log is x above the shipped one's leaves y = level + f(x - mu_task) + noise of the base model's loss. Each task has
its own level, so only trainings of one task at several rates say anything. f rises slowly below the best rate and fast above it, by an unknown scale.
mu_task is N(mu, 0.4^2) about the base model's own mu, and mu has the prior N(0, 0.45^2). A history is believed as far as that prior can believe what
it asks for, and moves the rate only where its 95 % interval leaves the shipped one out. All of it is summed over a grid, with no draw.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

BELOW, ABOVE = 0.01, 0.1
"""f at one unit of log below and above the best rate, over the base loss: medians of the oracle's language models."""
SCALES = (0.3, 1.0, 3.0, 10.0)
"""Of f, all as likely: settings differ that much."""
FARTHEST = math.log(10)
"""Beyond a factor 10 f is not known; such runs are left out."""
BETWEEN_FAMILIES = 0.45
"""Standard deviation of mu before a run is seen."""
BETWEEN_TASKS = 0.4
"""Standard deviation of a task's own best log rate about the model's: the oracle's language models."""
NOISE = 0.03
"""Of y, between seeds and beside f."""
MISLEADING = 0.05
"""Chance, beforehand, that a history says nothing about the next run: it then asks for any factor up to 30 either way."""
STUDENT = 1.96
"""Standard deviations of a 95 % interval."""
GRID = tuple(math.log(30) * step / 100 for step in range(-100, 101))


@final
@dataclass(frozen=True)
class PastTraining:
    """One training: `log_ratio` of its learning rate to the shipped one for it, and `remaining`, its loss over the base model's, on held-out rows."""

    task: str
    log_ratio: float
    remaining: float


@final
@dataclass(frozen=True)
class Shift:
    """What a history says: a factor on the learning rate, and how far it was believed (1: wholly)."""

    factor: float
    trust: float


def shift_of(past: Sequence[PastTraining]) -> Shift:
    """Shrink what the runs say to a factor of 1.

    >>> made = shift_of([PastTraining("a", x / 2, 0.3 + rise(x / 2 - 1.0)) for x in range(-4, 5)])
    >>> 1.0 <= made.factor < 2.8, shift_of([PastTraining("a", 0.1, 0.2)]).factor
    (True, 1.0)
    """
    near = [one for one in past if abs(one.log_ratio) <= FARTHEST and math.isfinite(one.remaining)]
    likely, prior = _likelihood(near), _normal(BETWEEN_FAMILIES)
    weights = [one * before for one, before in zip(likely, prior, strict=True)]
    believed, anything = (1 - MISLEADING) * math.fsum(weights), MISLEADING * statistics.mean(likely)
    trust = believed / (believed + anything)
    mean = math.fsum(mu * w for mu, w in zip(GRID, weights, strict=True)) / math.fsum(weights)
    spread = math.sqrt(
        math.fsum((mu - mean) ** 2 * w for mu, w in zip(GRID, weights, strict=True)) / math.fsum(weights)
    )
    return Shift(math.exp(trust * mean) if abs(mean) > STUDENT * spread else 1.0, trust)


def rise(distance: float) -> float:
    """f: what a log distance above (below, where it is negative) the best rate leaves more, as a share of the base loss."""
    return (ABOVE if distance > 0 else BELOW) * distance**2


def _likelihood(past: Sequence[PastTraining]) -> list[float]:
    """Of mu over the grid, the highest 1: the product over tasks, each task's own spread about mu."""
    logs = [0.0] * len(GRID)
    kernel = {abs(step): weight for step, weight in zip(range(-100, 101), _normal(BETWEEN_TASKS), strict=True)}
    for task in dict.fromkeys(one.task for one in past):
        own = [one for one in past if one.task == task]
        if len(own) > 1:
            alone = _of_task(own)
            spread = [
                math.fsum(value * kernel[abs(i - j)] for j, value in enumerate(alone) if abs(i - j) <= 100)
                for i in range(len(GRID))
            ]
            logs = [log + math.log(value) for log, value in zip(logs, spread, strict=True)]
    return [math.exp(log - max(logs)) for log in logs]


def _of_task(own: Sequence[PastTraining]) -> list[float]:
    """Likelihood of a task's best log rate over the grid, the highest 1; its level fitted, the scales of f all as likely."""
    squares = [
        [_misfit([one.remaining - scale * rise(one.log_ratio - mu) for one in own]) for scale in SCALES] for mu in GRID
    ]
    best = min(map(min, squares))
    return [math.fsum(math.exp((best - one) / (2 * NOISE**2)) for one in row) / len(SCALES) for row in squares]


def _misfit(values: Sequence[float]) -> float:
    middle = math.fsum(values) / len(values)
    return math.fsum((value - middle) ** 2 for value in values)


def _normal(spread: float) -> list[float]:
    """Its density over the grid, summed to 1."""
    values = [math.exp(-0.5 * (mu / spread) ** 2) for mu in GRID]
    return [value / math.fsum(values) for value in values]
