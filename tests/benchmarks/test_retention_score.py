"""What the shipped rule says of a kept search path, and whose losses a setting then counts with."""

import dataclasses
import json

import pytest

from benchmarks.retention.score import Case, advantage, by_the_rule, criteria
from benchmarks.retention.study import ARMS, ARMS_FOLDER, gave, read

KINDS = ("documentation", "licences", "news", "code", "chat")


def point(strength: float, rise: float, error: float):
    return {"strength": strength, "loss": 1.0, "rise": rise, "standard_error": error, "limit": 0.01, "within": True}


def case(path, **more) -> Case:
    """Two rows of one label everywhere: base 1, raw 2, the filter 1.09 on text; the task's loss 1 and 1.004."""

    def losses(text, task):
        return {"losses": {kind: [text, text] for kind in KINDS} | {"task": [task, task]}, "means": {"task": task}}

    arms = {"base": losses(1.0, 3.0), "raw": losses(2.0, 1.0)}
    arms["filter-mixture"] = {"path": path, "kappa": 9.0} | losses(1.09, 1.004) | more
    return Case("planted", {"arms": arms, "labels": {kind: [1, 1] for kind in (*KINDS, "task")}})


def test_the_rule_holds_rise_and_error_together_against_the_limit():
    assert by_the_rule([point(0.1, 0.001, 0.002), point(1.0, 0.005, 0.004)]) == 1.0
    assert by_the_rule([point(0.1, 0.001, 0.002), point(1.0, 0.005, 0.009)]) == 0.1
    assert by_the_rule([point(0.1, 0.001, 0.02)]) is None
    assert by_the_rule([point(0.1, 0.001, 0.002), point(1.0, 0.005, 0.009)], apart=True) == 1.0


@pytest.mark.parametrize(
    ("path", "strength", "served", "ratio"),
    [
        ([point(0.1, 0.001, 0.002)], 0.1, "filter-mixture", 0.09),
        ([point(0.001, 0.0, 0.02)], None, "raw", 1.0),  # the whole range was tried: the adapter stays as it was
        ([point(0.1, 0.001, 0.02)], 0.1, None, None),  # the search stopped above what the rule would try
        ([point(0.1, 0.001, 0.002), point(1.0, 0.005, 0.02)], 1.0, None, None),  # another strength was judged
    ],
)
def test_a_setting_counts_with_what_the_shipped_rule_serves(path, strength, served, ratio):
    made = case(path, strength=strength)
    assert made.served("filter-mixture") == served
    if ratio is not None:
        assert made.ratio("filter-mixture", "news") == pytest.approx(ratio)
    values = [one.holds for one in criteria([made], "filter-mixture")]
    assert values[:2] == [None if ratio is None else ratio <= 0.1, None if ratio is None else ratio <= 0.5]


def test_a_refused_update_leaves_the_adapter_as_it_was():
    assert case([point(0.1, 0.001, 0.002)], strength=0.1, refused="too wide").served("filter-mixture") == "raw"


def test_text_that_the_training_helped_does_not_count_as_forgetting_taken_off():
    made = case([point(0.1, 0.001, 0.002)], strength=0.1)
    arms = made.held["arms"]
    arms["scale"] = {
        "path": [point(0.1, 0.001, 0.002)],
        "strength": 0.1,
        "losses": {kind: [1.5, 1.5] for kind in (*KINDS, "task")},
    }
    assert advantage(made, "filter-mixture") == pytest.approx((0.5 - 0.09) / 0.5)
    for arm in (
        "raw",
        "scale",
        "filter-mixture",
    ):  # far below the base on one kind: the mean of all five would be negative
        arms[arm]["losses"]["documentation"] = [-9.0, -9.0]
    assert advantage(made, "filter-mixture") == pytest.approx((0.5 - 0.09) / 0.5)
    for kind in KINDS:
        arms["scale"]["losses"][kind] = [1.0, 1.0]
    assert advantage(made, "filter-mixture") is None  # scaling left nothing


def test_a_rival_is_another_training_of_the_same_task_and_judged_as_trained():
    made = dataclasses.replace(case([point(0.1, 0.001, 0.002)], strength=0.1), name="section")
    rival = dataclasses.replace(case([]), name="section-replay")
    [found] = [one for one in criteria([made, rival], "filter-mixture") if "below replay:" in one.words]
    assert (found.value, found.holds) == ("section +0.090 / +1.000", True)


def test_answers_that_the_filter_spoilt_are_counted():
    made = case([point(0.1, 0.001, 0.002)], strength=0.1)
    for spoilt, holds in ((1, True), (12, False)):
        exact = [1.0] * 24
        answers = {"raw": {"exact": exact}, "filter-mixture": {"exact": [0.0] * spoilt + exact[spoilt:]}}
        held = dict(made.held) | {"answers": answers}
        [found] = [one for one in criteria([Case("x", held)], "filter-mixture") if "answers" in one.words]
        assert found.holds is holds


def test_a_kind_of_the_tasks_own_source_gives_no_moments():
    assert gave(ARMS["filter-mixture"], "chat") == ("documentation", "news")
    assert gave(ARMS["filter-mixture"], "") == ("documentation", "news", "chat")


def test_arms_that_are_kept_apart_are_read_with_the_others(tmp_path):
    file = tmp_path / "planted.json"
    assert read(file) == {}
    file.write_text(json.dumps({"arms": {"raw": 1}, "labels": 2}), encoding="utf-8")
    (tmp_path / ARMS_FOLDER).mkdir()
    (tmp_path / ARMS_FOLDER / file.name).write_text(json.dumps({"arms": {"intruder": 3}}), encoding="utf-8")
    assert read(file) == {"arms": {"raw": 1, "intruder": 3}, "labels": 2}
