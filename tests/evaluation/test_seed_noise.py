"""What a few seeds tell of all seeds: the gate then promotes one of two equal ones in 5 % of cases, and the interval covers."""

import math

import numpy as np
import pytest

from lora_select.errors import InputError
from lora_select.evaluation.seed_noise import estimate

ROWS = 24
SIGMA = 0.3
"""Standard deviation of a seed's loss, in standard deviations of one row's paired difference."""


def trained(count, generator, sigma=SIGMA):
    """Losses of so many seeds: a seed moves all rows by one number, and its rows by noise whose mean over rows is 0."""
    rows = generator.normal(size=(count, ROWS)) / math.sqrt(2)
    rows -= rows.mean(axis=1, keepdims=True)
    return 3.0 + rows + sigma / math.sqrt(2) * generator.normal(size=(count, 1))


def promoted_over(first, second, made):
    """As `criteria.improvement` does, where rows say nothing: the reach is 1.96 seed errors."""
    return (second - first).mean() + 1.96 * made.asked * made.row_sd < 0


@pytest.mark.parametrize("seeds", [3, 5])
def test_one_of_two_equal_seeds_is_promoted_in_five_per_cent_of_cases(seeds):
    generator = np.random.default_rng(0)
    hits, covered, draws = 0, 0, 1500
    for _ in range(draws):
        made = estimate(trained(seeds, generator).tolist(), [1] * ROWS)
        first, second = trained(2, generator)
        hits += promoted_over(first, second, made)
        covered += made.interval[0] <= SIGMA <= made.interval[1]
    assert hits / draws == pytest.approx(0.05, abs=0.018)
    assert covered / draws == pytest.approx(0.95, abs=0.02)


def test_more_is_asked_where_fewer_seeds_were_trained():
    generator = np.random.default_rng(1)
    losses = trained(10, generator).tolist()
    few, many = estimate(losses[:3], [1] * ROWS), estimate(losses, [1] * ROWS)
    assert few.asked / few.ratio == pytest.approx(2.92 / 1.96, rel=0.01)
    assert many.asked / many.ratio == pytest.approx(1.833 / 1.96, rel=0.01)
    assert many.interval[1] / many.ratio < few.interval[1] / few.ratio


def test_weights_are_label_tokens():
    made = estimate([[2.0, 8.0], [2.0, 10.0], [4.0, 8.0]], [1, 4])
    assert made.losses == pytest.approx((2.0, 2.4, 2.4))


@pytest.mark.parametrize(
    ("losses", "labels"), [([[1.0, 2.0]] * 2, [1, 1]), ([[1.0], [2.0], [3.0]], [1]), ([[1.0, 2.0]] * 3, [1, 1])]
)
def test_what_says_nothing_is_refused(losses, labels):
    with pytest.raises(InputError):
        estimate(losses, labels)
