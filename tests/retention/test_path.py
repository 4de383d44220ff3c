"""Morozov's rule on losses that are known, and the decision as a pure function of its evidence."""

import dataclasses
import math

import pytest

from lora_select.errors import InputError
from lora_select.records import PathPoint, RetentionEvidence, Tolerance, UnitLosses, from_json, to_json
from lora_select.retention.decide import decide
from lora_select.retention.path import (
    EVALUATIONS,
    MOST,
    NEAR,
    RESOLUTION,
    Losses,
    allowed,
    chosen,
    morozov,
    paired,
    parse_tolerance,
    shortened,
)

LABELS = (4, 2, 6, 3)
RAW = Losses((4.0, 2.0, 6.0, 3.0), LABELS)


def rising(scale, calls=None, power=1.0):
    """Every row's loss per token rises by scale * lambda ** power."""

    def evaluate(strength):
        if calls is not None:
            calls.append(strength)
        return tuple(loss + scale * strength**power * count for loss, count in zip(RAW.losses, LABELS, strict=True))

    return evaluate


@pytest.mark.parametrize("power", [0.3, 1.0, 2.0])
@pytest.mark.parametrize("truth", [0.0025, 0.02, 0.5, 4.0])
def test_the_largest_strength_within_the_tolerance_is_found_and_each_is_evaluated_once(truth, power):
    calls = []
    points = morozov(RAW, rising(0.01 / truth**power, calls, power), Tolerance(0.01, None))
    assert len(calls) == len(set(calls)) == len(points) <= EVALUATIONS
    best = chosen(points)
    assert best is not None
    assert best.rise <= 0.01
    assert best.strength >= truth / RESOLUTION or best.rise >= NEAR * 0.01
    assert best.rise == pytest.approx(0.01 * (best.strength / truth) ** power)


def test_what_never_or_always_stays_within_ends_at_the_limits():
    assert chosen(morozov(RAW, rising(1e6), Tolerance(0.01, None))) is None
    best = chosen(morozov(RAW, rising(0.0), Tolerance(0.01, None)))
    assert best is not None
    assert best.strength == MOST


def test_rows_that_cannot_tell_a_rise_of_that_size_choose_nothing():
    def noisy(spread):
        return lambda _strength: tuple(a + spread * sign for a, sign in zip(RAW.losses, (1, -1, 1, -1), strict=True))

    assert chosen(morozov(RAW, noisy(1.0), Tolerance(0.01, None))) is None
    assert chosen(morozov(RAW, noisy(0.01), Tolerance(0.01, None))) is not None


def test_the_search_ends_where_the_standard_error_uses_the_tolerance():
    """The rise is nothing and its standard error grows with the strength: at 0.1 it is nine tenths of what is allowed."""
    calls = []

    def noisy(strength):
        calls.append(strength)
        spread = 0.009 * 15 / 4 * 3**0.5 * strength / 0.1
        return tuple(a + spread * sign for a, sign in zip(RAW.losses, (1, -1, 1, -1), strict=True))

    points = morozov(RAW, noisy, Tolerance(0.01, None))
    assert 0.8 * 0.01 < points[0].standard_error <= 0.01
    assert calls == [0.1, 1.0]


def test_the_upper_end_of_the_rise_is_held_against_the_tolerance():
    """A rise and an error of 0.006 each are both within 0.01; their sum is not."""

    def at(strength):
        signs = (1, -1, 1, -1)
        return tuple(
            loss + min(1.0, strength / 0.1) * (0.006 * count + 0.006 * 15 / 4 * 3**0.5 * sign)
            for loss, count, sign in zip(RAW.losses, LABELS, signs, strict=True)
        )

    first = next(point for point in morozov(RAW, at, Tolerance(0.01, None)) if point.strength == 0.1)
    assert 0.004 < first.rise < 0.01
    assert 0.004 < first.standard_error < 0.01
    assert not first.within


def test_a_loss_that_dips_back_under_the_tolerance_is_not_trusted():
    points = [PathPoint(s, 0, 0, 0, 0, within) for s, within in ((0.1, True), (0.3, False), (1.0, True))]
    best = chosen(points)
    assert best is not None
    assert best.strength == 0.1


def test_an_update_that_overshoots_its_task_is_made_as_much_shorter_as_the_rows_can_tell():
    def point(strength, rise, error):
        return PathPoint(strength, 1 + rise, rise, error, 0.01, rise + error <= 0.01)

    overshot = [point(0.1, -0.07, 0.02), point(1.0, -0.25, 0.1), point(3.2, -0.16, 0.12), point(10.0, 0.35, 0.15)]
    assert shortened(overshot) == 1.0
    assert shortened([point(0.1, -0.01, 0.011), point(1.0, 0.2, 0.02)]) == 0.0
    assert shortened([]) == 0.0


def test_the_standard_error_is_that_of_paired_rows():
    rise, error = paired((4.0, 2.0, 6.0, 3.0), (5.0, 2.0, 6.5, 3.0), LABELS)
    mean = 1.5 / 15
    expected = math.sqrt(4 / 3 * sum((c - mean * w) ** 2 for c, w in zip((1, 0, 0.5, 0), LABELS, strict=True))) / 15
    assert (rise, error) == (pytest.approx(mean), pytest.approx(expected))


def test_the_default_tolerance_is_one_per_cent_of_the_loss():
    assert allowed(parse_tolerance(None), 2.0) == 0.02
    assert allowed(parse_tolerance("3%"), 2.0) == pytest.approx(0.06)
    assert allowed(parse_tolerance("0.1"), 2.0) == 0.1
    for text in ("0", "-1%", "x", "nan", ""):
        with pytest.raises(InputError, match="tolerance"):
            parse_tolerance(text)


def evidence(*, raw, scale, filtered, within=True, written=None, refused=None, earlier=None):
    """Eight chunks of two sets whose losses per token rise by these numbers, with a little spread."""

    def losses(rise):
        return tuple(100 * (3 + rise + 0.002 * (-1) ** index) for index in range(8))

    units = UnitLosses(
        (100,) * 8,
        tuple(300.0 for _ in range(8)),
        {"raw": losses(raw), "scale": losses(scale), "filter": losses(filtered)},
    )
    point = PathPoint(0.5, 1.01, 0.005, 0.004, 0.01, within)
    return RetentionEvidence(
        Tolerance(0.01, None),
        1.0,
        48,
        2.0,
        (point,),
        (dataclasses.replace(point, strength=0.7),),
        written or {},
        refused or {},
        {"a": units, "b": units},
        earlier=earlier,
    )


@pytest.mark.parametrize(
    ("numbers", "choice", "strength"),
    [
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.02}, "filter", 0.7),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.2}, "scale", 0.5),
        ({"raw": 0.3, "scale": 0.3, "filtered": 0.31}, "none", 0.0),
        ({"raw": 0.005, "scale": 0.001, "filtered": -0.1}, "none", 0.0),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.02, "within": False}, "none", 0.0),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.02, "written": {"filter": 0.02}}, "scale", 0.5),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.02, "refused": {"filter": "no rank"}}, "scale", 0.5),
    ],
)
def test_what_is_not_worth_it_is_not_done(numbers, choice, strength):
    decision = decide(evidence(**numbers))
    assert (decision.choice, decision.strength) == (choice, strength)
    assert decision.reasons


KEEPS = {"raw": 1.0, "scale": 0.6, "filter": 0.1}


@pytest.mark.parametrize(
    ("numbers", "choice"),
    [
        ({"raw": 0.005, "scale": 0.005, "filtered": 0.005, "earlier": KEEPS}, "filter"),
        ({"raw": 0.005, "scale": 0.005, "filtered": 0.005, "earlier": KEEPS | {"filter": 0.7}}, "scale"),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.2, "earlier": KEEPS}, "filter"),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.25, "earlier": KEEPS}, "scale"),
        ({"raw": 0.3, "scale": 0.2, "filtered": 0.02, "earlier": KEEPS | {"filter": 0.7}}, "filter"),
        ({"raw": 0.005, "scale": 0.005, "filtered": 0.005, "within": False, "earlier": KEEPS}, "none"),
    ],
)
def test_earlier_tasks_are_kept_where_general_text_cannot_tell_or_was_not_harmed(numbers, choice):
    decision = decide(evidence(**numbers))
    assert decision.choice == choice
    assert decide(from_json(RetentionEvidence, to_json(evidence(**numbers)))) == decision


def test_the_decision_is_replayed_byte_for_byte_from_the_written_evidence():
    given = evidence(raw=0.3, scale=0.2, filtered=0.02)
    again = from_json(RetentionEvidence, to_json(given))
    assert again == given
    assert to_json(decide(again)) == to_json(decide(given))
