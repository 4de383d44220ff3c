"""How far two seeds of one setting differ, from trainings that differ in their seed alone."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lora_select.errors import InputError
from lora_select.evaluation.interval import LEVEL
from lora_select.evaluation.policy import quantile
from lora_select.evaluation.power import paired_error

FEWEST_SEEDS = 3
NOMINAL = 0.05
"""How often, at most, one of two equal seeds may be promoted over the other."""


@final
@dataclass(frozen=True)
class Estimate:
    """The numbers of :class:`lora_select.records.SeedNoise`."""

    losses: tuple[float, ...]
    row_sd: float
    ratio: float
    interval: tuple[float, float]
    asked: float


def estimate(losses: Sequence[Sequence[float]], labels: Sequence[int]) -> Estimate:
    """The seed noise of a setting.

    The losses of K seeds have the standard deviation s; two of them differ by sqrt(2) s. The rows' own noise is not taken off: what
    cannot be told from it counts as seed noise. The interval is that of a normal sample's standard deviation, by chi-square with K - 1
    degrees of freedom. The gate multiplies what it asks for by the normal 97.5 % quantile z; `asked` = ratio t / z, t the 95 % quantile
    of Student's distribution with K - 1 degrees of freedom, promotes one of two equal seeds in 5 % of cases although s was
    estimated (Snedecor and Cochran, Statistical Methods, 1989, sections 5.9 and 6.8).

    Args:
        losses: summed loss of each row in nats, one sequence a seed, the same rows in each.
        labels: label tokens of each row.

    Raises:
        InputError: fewer than three seeds, fewer than two rows, or seeds that made the same adapter.

    >>> made = estimate([[1.0, 2.0, 3.0], [1.5, 2.0, 3.1], [0.8, 2.2, 3.3]], [1, 1, 1])
    >>> round(made.ratio, 2), round(made.asked / made.ratio, 2)
    (0.38, 1.49)
    """
    from scipy import stats

    if len(losses) < FEWEST_SEEDS:
        raise InputError(f"seed noise needs {FEWEST_SEEDS} seeds or more, got {len(losses)}")
    if len(labels) < 2:
        raise InputError(
            f"seed noise needs two held-out rows or more, got {len(labels)}; raise `dataset.eval_fraction`"
        )
    total, rows = sum(labels), len(labels)
    means = [float(np.sum(one)) / total for one in losses]
    squares = [paired_error(a, b, labels) ** 2 * rows for a, b in itertools.combinations(losses, 2)]
    row_sd = math.sqrt(float(np.mean(squares)))
    if row_sd == 0:
        raise InputError("the seeds made the same adapter: nothing in this training is random")
    degrees = len(losses) - 1
    ratio = math.sqrt(2) * float(np.std(means, ddof=1)) / row_sd
    ends = (stats.chi2.ppf((1 + LEVEL) / 2, degrees), stats.chi2.ppf((1 - LEVEL) / 2, degrees))
    low, high = (ratio * math.sqrt(degrees / float(end)) for end in ends)
    return Estimate(tuple(means), row_sd, ratio, (low, high), ratio * inflation(len(losses)))


def inflation(seeds: int) -> float:
    """What the gate asks for over what so many seeds showed.

    >>> round(inflation(3), 2), round(inflation(5), 2)
    (1.49, 1.09)
    """
    from scipy import stats

    return float(stats.t.ppf(1 - NOMINAL, seeds - 1)) / quantile((1 + LEVEL) / 2)
