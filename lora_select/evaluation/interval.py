"""Paired bootstrap intervals: the same rows before and after, resampled together."""

from collections.abc import Sequence

import numpy as np

from lora_select.errors import InputError

LEVEL = 0.95
CHUNK = 256


def paired_bootstrap(
    base: Sequence[float],
    adapted: Sequence[float],
    weights: Sequence[float] | None = None,
    *,
    samples: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float, tuple[float, float]]:
    """Both values, their difference, and its 95 % percentile interval over resampled rows (Efron and Tibshirani 1993, 13.3).

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
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return first, second, second - first, (float(low), float(high))


def _resample(change: np.ndarray, weights: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    rows = generator.integers(0, len(change), size=(count, len(change)))
    return change[rows].sum(axis=1) / weights[rows].sum(axis=1)
