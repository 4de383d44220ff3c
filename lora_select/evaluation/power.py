"""How sure a difference is, and how many rows it would take: standard errors of paired differences, p-values, power."""

import math
from collections.abc import Sequence

import numpy as np

from lora_select.evaluation.interval import student_quantile
from lora_select.evaluation.policy import LEVEL, POWER, quantile
from lora_select.records import MetricComparison

MOST_ROWS = 1_000_000
"""Beyond this many rows the answer is that rows will not tell."""


def paired_error(base: Sequence[float], adapted: Sequence[float], weights: Sequence[float] | None = None) -> float:
    """The standard error of sum(adapted - base) / sum(weights) over rows: the linearised error of a ratio.

    Cochran, Sampling Techniques (1977), section 2.11, equation 2.46, without the finite-population correction.

    Args:
        base: one number per row.
        adapted: the same rows, after.
        weights: positive, one per row; None for a mean over rows.

    >>> round(paired_error([0.0, 0.0, 0.0], [1.0, 2.0, 3.0]), 4)
    0.5774
    """
    change = np.asarray(adapted, dtype=np.float64) - np.asarray(base, dtype=np.float64)
    per_row = np.ones_like(change) if weights is None else np.asarray(weights, dtype=np.float64)
    rows, total = len(change), per_row.sum()
    left = change - change.sum() / total * per_row
    return float(math.sqrt(np.square(left).sum() * rows / (rows - 1)) / total)


def standard_error(pair: MetricComparison) -> float:
    """That of the difference: as recorded, else from the width of the interval, which is 2 t of them."""
    if pair.standard_error is not None:
        return pair.standard_error
    width = pair.interval[1] - pair.interval[0]
    return width / (2 * student_quantile(pair.rows - 1)) if pair.rows > 1 else math.inf


def p_value(difference: float, error: float, bound: float = 0.0) -> float:
    """One-sided: how often a true difference at `bound` would be measured as low as `difference`, by the normal distribution.

    >>> round(p_value(-1.96, 1.0), 3), p_value(-1.0, 0.0), p_value(0.0, 0.0)
    (0.025, 0.0, 1.0)
    """
    gap = bound - difference
    if error == 0:
        return 0.0 if gap > 0 else 1.0
    return 0.5 * math.erfc(gap / error / math.sqrt(2))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given: below 5 % means rejected with a family-wise error of 5 %.

    Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal of Statistics 6 (1979). It needs no
    assumption about how the metrics depend on each other, which exact match and JSON validity of the same answers do.

    >>> holm([0.04, 0.01, 0.03])
    [0.06, 0.03, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    adjusted, worst = [0.0] * len(p_values), 0.0
    for place, index in enumerate(order):
        worst = max(worst, min(1.0, (len(p_values) - place) * p_values[index]))
        adjusted[index] = worst
    return adjusted


def rows_needed(gap: float, error: float, rows: int, *, floor: float = 0.0, level: float = LEVEL) -> int | None:
    """About how many rows would show a true gap of this size, with a power of 80 %.

    N = s^2 / ((g / (z_a + z_b))^2 - f^2), s^2 = rows x error^2 the variance of one row's difference, z_a the quantile of the
    two-sided interval, z_b that of the power, f an error that rows do not shrink (Chow, Shao and Wang, Sample Size Calculations in
    Clinical Research, 2008, section 3.1).

    Args:
        gap: how far beyond the bound the difference lies, in its unit; not positive when it lies on the wrong side.
        error: standard error of the difference on `rows` rows.
        rows: how many were measured.
        floor: standard deviation between seeds of the difference.
        level: of the interval.

    Returns:
        At least `rows` + 1; None where no number of rows would tell.

    >>> rows_needed(0.1, 0.1, 100), rows_needed(-0.1, 0.1, 100)
    (785, None)
    """
    if gap <= 0 or not math.isfinite(error):
        return None
    room = (gap / (quantile((1 + level) / 2) + quantile(POWER))) ** 2 - floor**2
    if room <= 0:
        return None
    wanted = math.ceil(rows * error**2 / room)
    return max(wanted, rows + 1) if wanted <= MOST_ROWS else None
