"""The paired bootstrap: exact where it must be, covering where it can be checked, refusing where it cannot speak."""

import numpy as np
import pytest

from lora_select.errors import InputError
from lora_select.evaluation.interval import FEW_ROWS, paired_bootstrap, student_quantile


def test_equal_differences_have_no_spread():
    base, adapted, difference, interval = paired_bootstrap([3.0, 5.0, 7.0], [2.0, 4.0, 6.0])
    assert (base, adapted, difference) == (5.0, 4.0, -1.0)
    assert interval == pytest.approx((-1.0, -1.0))


def test_ratio_is_of_sums():
    base, adapted, *_ = paired_bootstrap([2.0, 9.0], [1.0, 3.0], [1, 3])
    assert (base, adapted) == (11 / 4, 1.0)


def test_same_seed_same_interval():
    values = np.random.default_rng(0).normal(size=(2, 30))
    assert paired_bootstrap(*values, seed=3) == paired_bootstrap(*values, seed=3)
    assert paired_bootstrap(*values, seed=3)[3] != paired_bootstrap(*values, seed=4)[3]


def covered(rows, weighted, trials, samples=400):
    """How often the interval holds the truth -0.1."""
    generator = np.random.default_rng(rows)
    hits = 0
    for trial in range(trials):
        weights = generator.integers(1, 20, size=rows) if weighted else np.ones(rows)
        base = generator.normal(2.0, 0.5, size=rows) * weights
        adapted = base + generator.normal(-0.1, 0.4, size=rows) * weights
        low, high = paired_bootstrap(base, adapted, weights, samples=samples, seed=trial)[3]
        hits += low <= -0.1 <= high
    return hits / trials


@pytest.mark.parametrize(("rows", "weighted"), [(60, False), (60, True), (FEW_ROWS, False), (FEW_ROWS, True)])
def test_interval_covers_the_truth_about_as_often_as_it_says(rows, weighted):
    assert 0.90 <= covered(rows, weighted, trials=400) <= 0.985


def test_three_rows_promise_more_than_they_keep():
    """Why the gate wants rows: the resamples of three rows hold too few values for any quantile to help."""
    assert covered(3, False, trials=400) < 0.85


def test_more_rows_shorter_interval():
    generator = np.random.default_rng(2)
    widths = []
    for rows in (25, 100, 400):
        low, high = paired_bootstrap(np.zeros(rows), generator.normal(size=rows))[3]
        widths.append((high - low) * rows**0.5)
    assert widths == pytest.approx([2 * 1.96] * 3, rel=0.3)


def test_quantile_of_student():
    known = {3: 3.182, 5: 2.571, 10: 2.228, 30: 2.042, 10_000: 1.960}  # any printed table
    for degrees, value in known.items():
        assert student_quantile(degrees) == pytest.approx(value, rel=0.01)


def test_bad_input():
    with pytest.raises(InputError, match="at least 2 evaluation rows, got 1"):
        paired_bootstrap([1.0], [2.0])
    with pytest.raises(ValueError, match="must be paired"):
        paired_bootstrap([1.0, 2.0], [2.0])
