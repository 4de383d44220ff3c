"""Paired bootstrap intervals: the same rows before and after, resampled together."""

import math
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

from lora_select.errors import InputError

LEVEL = 0.95
CHUNK = 256
FEW_ROWS = 10
"""Below this many rows the 95 % interval covers visibly less: see `tests/evaluation/test_interval.py` for how much."""


def paired_bootstrap(
    base: Sequence[float],
    adapted: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float, tuple[float, float]]:
    """Both values, their difference, and its 95 % bootstrap interval over resampled rows.

    The interval is the expanded percentile interval: quantiles of the resampled differences at Phi(-sqrt(n/(n-1)) t),
    t the 97.5 % quantile of Student's distribution with n-1 degrees of freedom, in place of 2.5 % and 97.5 %. The plain
    percentile interval is too short by the same factor as a normal interval with the uncorrected standard deviation; for
    n > 100 rows the two agree within 1 %.

    The value is sum(x) / sum(weights): a mean over rows when there are no weights, nats per label token when x is a
    row's summed loss and the weight its label tokens.

    Args:
        base: one number per row.
        adapted: the same rows, after.
        weights: positive, one per row, the same before and after.
        samples: resamples.
        seed: of the resampling.

    Returns:
        `(base value, adapted value, adapted - base, (low, high))`.

    Raises:
        InputError: fewer than two rows, from which nothing can be said about spread.

    References:
        Efron and Tibshirani, An Introduction to the Bootstrap (1993), section 13.3. Hesterberg, What Teachers Should Know
        About the Bootstrap, The American Statistician 69 (2015): the expanded percentile interval.

    Example:
        >>> paired_bootstrap([3.0, 5.0], [2.0, 4.0])
        (4.0, 3.0, -1.0, (-1.0, -1.0))
    """
    before, after = np.asarray(base, dtype=np.float64), np.asarray(adapted, dtype=np.float64)
    per_row = np.ones_like(before) if weights is None else np.asarray(weights, dtype=np.float64)
    if not len(before) == len(after) == len(per_row):
        raise ValueError(f"rows must be paired: {len(before)} before, {len(after)} after, {len(per_row)} weights")
    if len(before) < 2:
        raise InputError(
            f"an interval needs at least 2 evaluation rows, got {len(before)}; raise `dataset.eval_fraction`"
        )
    total = per_row.sum()
    first, second = float(before.sum() / total), float(after.sum() / total)
    change = after - before
    generator = np.random.default_rng(seed)
    drawn = np.concatenate(
        [_resample(change, per_row, min(CHUNK, samples - start), generator) for start in range(0, samples, CHUNK)]
    )
    tail = _tail(len(change))
    low, high = np.quantile(drawn, [tail, 1 - tail])
    return first, second, second - first, (float(low), float(high))


def _tail(rows: int) -> float:
    """The probability beyond either end of the expanded percentile interval: below 2.5 %, and towards it for many rows."""
    reach = student_quantile(rows - 1) * math.sqrt(rows / (rows - 1))
    return NormalDist().cdf(-reach)


def student_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t, by its expansion about the normal (Abramowitz and Stegun, 26.7.5).

    Within 1 % from 3 degrees of freedom on; below, the interval spans nearly every resample either way.

    >>> round(student_quantile(10), 2), round(student_quantile(30), 3)
    (2.23, 2.042)
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / degrees + second / degrees**2 + third / degrees**3


def _resample(change: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    rows = generator.integers(0, len(change), size=(count, len(change)))
    return change[rows].sum(axis=1) / weights[rows].sum(axis=1)
