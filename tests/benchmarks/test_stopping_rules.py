"""Rules that choose the filter's strength on few rows: what each makes of rows whose truth is known."""

import math
import random

import pytest

from benchmarks.rows.stopping import NOTHING, STRENGTHS, both, choices


def held(cost, noise, expected, rows=80):
    """Rows of three labels and a loss of 1 a label; the loss of a label rises by `cost` times the strength, with noise, and `expected` times it is K."""
    generator = random.Random(1)
    made = {"labels": [3] * rows, "raw": [3.0] * rows}
    shifts = [generator.gauss(0.0, 1.0) for _ in range(rows)]
    centre = math.fsum(shifts) / rows
    for arm, strengths in STRENGTHS.items():
        for s in strengths:
            made[f"{arm} {s}"] = [
                [3.0 + 3 * s * (cost + noise * (shift - centre)), 3 * s * expected] for shift in shifts
            ]
    return made


def allowed(found):
    return sum(one.strength > 0 for one in found) / len(found)


def test_rows_that_show_nothing_choose_by_what_is_expected_alone():
    noisy = held(cost=0.01, noise=3.0, expected=0.01)
    assert allowed(choices(noisy, "filter", "seen", 12)) < 0.5
    assert allowed(choices(noisy, "filter", "prior", 12)) > 0.9
    assert {one.strength for one in choices(noisy, "filter", "expected", 12)} == {1.0}


def test_rows_that_show_more_than_is_expected_count_alone():
    sure = held(cost=0.03, noise=0.001, expected=0.0003)
    for rule in ("seen", "prior", "labels"):
        assert {one.strength for one in choices(sure, "filter", rule, 12)} == {0.3}
    assert {one.strength for one in choices(sure, "filter", "expected", 12)} == {3.0}


def test_the_cost_is_that_of_the_rows_that_were_not_drawn_as_a_share_of_their_loss():
    found = choices(held(cost=0.03, noise=0.0, expected=0.03), "filter", "seen", 12)
    assert all(one.cost == pytest.approx(0.009) for one in found)
    nothing = choices(held(cost=1.0, noise=0.0, expected=1.0), "filter", "seen", 12)
    assert {(one.strength, one.cost) for one in nothing} == {(0.0, 0.0)}
    assert min(STRENGTHS["filter"]) > NOTHING


def test_both_is_the_posterior_of_a_normal_rise_seen_once_with_a_normal_error():
    """By quadrature of prior times likelihood."""
    grid = [step / 20000 for step in range(-1000, 1500)]
    weights = [math.exp(-0.5 * ((x - 0.006) / 0.004) ** 2 - 0.5 * ((x + 0.01) / 0.009) ** 2) for x in grid]
    mean = math.fsum(w * x for w, x in zip(weights, grid, strict=True)) / math.fsum(weights)
    spread = math.sqrt(math.fsum(w * (x - mean) ** 2 for w, x in zip(weights, grid, strict=True)) / math.fsum(weights))
    assert both(-0.01, 0.009, 0.006, 0.004) == (pytest.approx(mean, abs=1e-6), pytest.approx(spread, abs=1e-6))
