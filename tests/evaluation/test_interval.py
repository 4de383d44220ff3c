"""The paired bootstrap: exact where it must be, covering where it can be checked, refusing where it cannot speak."""

import numpy as np
import pytest

from lora_select.errors import InputError
from lora_select.evaluation.interval import paired_bootstrap


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


@pytest.mark.parametrize("weighted", [False, True])
def test_interval_covers_the_truth_about_as_often_as_it_says(weighted):
    generator = np.random.default_rng(1)
    hits = 0
    for trial in range(300):
        weights = generator.integers(1, 20, size=60) if weighted else np.ones(60)
        base = generator.normal(2.0, 0.5, size=60) * weights
        adapted = base + generator.normal(-0.1, 0.4, size=60) * weights
        low, high = paired_bootstrap(base, adapted, weights, samples=400, seed=trial)[3]
        hits += low <= -0.1 <= high
    assert 0.89 <= hits / 300 <= 0.98


def test_bad_input():
    with pytest.raises(InputError, match="at least 2 evaluation rows, got 1"):
        paired_bootstrap([1.0], [2.0])
    with pytest.raises(ValueError, match="must be paired"):
        paired_bootstrap([1.0, 2.0], [2.0])
