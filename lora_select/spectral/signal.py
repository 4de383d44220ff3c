"""Signal and noise of a gradient from microbatches: U-statistics and held-out singular values.

G_k is the gradient of microbatch k = 1..K, independent draws with mean G. Raw spectra of the mean mislead, because sampling
noise is correlated and of full rank; products across microbatches do not, because their
noises are independent.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np

from lora_select.spectral.numerics import error_of

FALSE_DISCOVERIES = 0.01
"""Share of the directions called signal that may be noise, on average."""


@final
@dataclass(frozen=True)
class Energy:
    """An energy (squared Frobenius norm) and its standard error, in the unit of G squared."""

    value: float
    standard_error: float


def signal_energy(inner: np.ndarray, counts: Sequence[int]) -> float:
    """U-statistic for ||G||^2: sum_{a != b} <S_a, S_b> / sum_{a != b} K_a K_b over fold sums S_a of K_a microbatches.

    Unbiased, hence possibly negative. With one microbatch a fold it is (||sum G_k||^2 - sum ||G_k||^2) / (K (K - 1)).

    Args:
        inner: <S_a, S_b>, (F, F), F >= 2; the diagonal is not used.
        counts: K_a, (F,).

    Example:
        >>> signal_energy(np.array([[9.0, 2.0], [2.0, 9.0]]), [1, 1])
        2.0
    """
    weights = np.asarray(counts, dtype=float)
    pairs = weights.sum() ** 2 - np.square(weights).sum()
    return float((inner.sum() - np.trace(inner)) / pairs)


def mean_norm(sketched: Sequence[float], sample: float, sample_sketched: float) -> float:
    """Mean of ||G_k||^2 over all microbatches, from sketched values of all and a sample whose norm is known both ways.

    mean(sketched) * sample / sample_sketched: the sketch's error is common to all microbatches, which share the test matrices, and
    cancels as far as the sample's directions are theirs.

    Example:
        >>> mean_norm([2.0, 4.0, 6.0, 8.0], 1.0, 1.25)   # the sketch is a quarter too high
        4.0
    """
    return float(np.mean(sketched)) * (sample / sample_sketched if sample_sketched > 0 else 1.0)


def noise_energy(mean_squared_norm: float, signal: float) -> float:
    """Sum ||G_k - mean||^2 / (K - 1) = mean ||G_k||^2 - signal, the energy of one microbatch's deviation; at least 0."""
    return max(0.0, mean_squared_norm - signal)


def sampling_error(cores: np.ndarray) -> float:
    """Jackknife standard error of the U-statistic over microbatches, from small projections of each gradient.

    A projection by matrices independent of the data keeps <G_j, G_k> in the mean, and its effective dimension is lower, so
    the noise it shows is not smaller than the true one: the error is stated on the safe side.

    Args:
        cores: (K, dimensions), scaled so that inner products are unbiased; K >= 3.
    """
    gram = cores @ cores.T
    off = gram - np.diag(np.diag(gram))
    count, total = len(gram), off.sum()
    left_out = (total - 2 * off.sum(1)) / ((count - 1) * (count - 2))
    return error_of(left_out.tolist())


def sketch_error(left_out: np.ndarray, counts: Sequence[int]) -> float:
    """Standard error of the U-statistic from the sketch: jackknife over left-out blocks of Psi, (B, F, F); 0 when exact."""
    return error_of([signal_energy(inner, counts) for inner in left_out]) if len(left_out) else 0.0


def heldout(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Means and standard errors of held-out singular values u_i^T G_k v_i over the microbatches of the second half.

    Args:
        values: (K_b, q), one row a microbatch that had no part in choosing u_i, v_i; K_b >= 2.
    """
    return values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))


def signal_rank(values: Sequence[float], errors: Sequence[float], microbatches: int) -> int:
    """How many held-out values are above zero, at a false discovery rate of 1 %: Benjamini and Hochberg's step-up on t-tests.

    Not the length of the leading run: under correlated noise the leading directions of the first half are noise, and directions
    behind them carry the signal (benchmarks/signal_rank.py). With no signal at all, one direction or more is found in about
    1 % of layers.

    Args:
        values: held-out singular values, in any order.
        errors: their standard errors.
        microbatches: K_b >= 2 that each error comes from; few make the tests strict.

    References:
        Benjamini, Hochberg (1995), *Controlling the false discovery rate*, section 3.1.

    Example:
        >>> signal_rank([0.5, 9.0, 4.0, -7.0], [1.0, 1.0, 1.0, 1.0], microbatches=16)
        2
    """
    tests = [t_tail(value / error, microbatches - 1) for value, error in zip(values, errors, strict=True) if error > 0]
    below = [rank for rank, p in enumerate(sorted(tests), start=1) if p <= FALSE_DISCOVERIES * rank / len(tests)]
    return max(below, default=0)


def t_tail(t: float, degrees: int) -> float:
    """P(T > t) of Student's t with a whole number of degrees of freedom, by its finite series.

    References:
        Abramowitz, Stegun (1964), 26.7.3 and 26.7.4.

    Example:
        >>> round(t_tail(1.0, 1), 6)   # Cauchy: 1/2 - arctan(1)/pi
        0.25
    """
    angle = math.atan(t / math.sqrt(degrees))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = total = 1.0 if degrees % 2 == 0 else math.cos(angle)
    for k in range(2 if degrees % 2 == 0 else 3, degrees, 2):
        term *= square * (k - 1) / k
        total += term
    if degrees % 2 == 0:
        return 0.5 - sine * total / 2
    return 0.5 - (angle + sine * (total if degrees > 1 else 0.0)) / math.pi
