"""The gate: champion only for what beats base and champion beyond the noise; every other answer says its numbers."""

import dataclasses
import math

import numpy as np
import pytest

from lora_select.errors import InputError
from lora_select.evaluation.criteria import SHOWN_BY_NONE, share_interval
from lora_select.evaluation.evaluate import comparison
from lora_select.evaluation.gate import decide, judge
from lora_select.evaluation.policy import Policy
from lora_select.evaluation.power import holm, p_value, paired_error, rows_needed, standard_error
from lora_select.records import Evaluation, FileRef, MetricComparison, Promotion, from_json, to_json

ROWS_ALONE = Policy(seed_noise=0.0)


def pair(difference, spread=0.1, better="lower", rows=50, base=2.0, unit="nats/token"):
    interval = (difference - spread, difference + spread)
    sure = interval[0] > 0 or interval[1] < 0
    return MetricComparison(base, base + difference, difference, interval, rows, unit, better, sure, spread / 1.96)


def share(base, adapted, spread=0.1, rows=50):
    return pair(adapted - base, spread, "higher", rows, base, "of rows")


def evaluation(loss=-0.5, match=0.2, forgetting=0.05, champion=None, rows=50, match_against=None):
    against = {} if champion is None else {"champion": {"loss": pair(champion)}}
    if match_against is not None:
        against["champion"]["exact_match"] = match_against
    metrics = {"loss": pair(loss, rows=rows), "exact_match": share(0.4, 0.4 + match)}
    return Evaluation("a", "d", metrics, against, pair(forgetting), (), FileRef("rows.json", "0", 0), ())


@pytest.mark.parametrize(
    ("made", "champion", "answer", "words"),
    [
        (evaluation(), None, "promote", "there was no champion"),
        (evaluation(champion=-0.3), "3", "promote", "champion version 3"),
        (evaluation(champion=-0.05), "3", "undecided", "does not beat champion version 3's"),
        (evaluation(champion=-0.12), "3", "undecided", "two seeds of one setting differ"),
        (evaluation(champion=0.6), "3", "refuse", "does not beat champion version 3's"),
        (evaluation(), "3", "refuse", "was not compared"),
        (evaluation(loss=-0.05), None, "undecided", "does not beat the base"),
        (evaluation(loss=0.5), None, "refuse", "does not beat the base"),
        (evaluation(loss=0.01), None, "refuse", "does not beat the base"),
        (evaluation(match=-0.3), None, "refuse", "exact match fell"),
        (evaluation(champion=-0.6, match_against=share(0.6, 0.3)), "3", "refuse", "exact match fell against champion"),
        (evaluation(forgetting=0.65), None, "refuse", "over the limit of 0.5"),
        (evaluation(forgetting=0.6), None, "refuse", "2.000 -> 2.600 nats/token, change +0.600 [+0.500, +0.700]"),
        (evaluation(forgetting=0.45), None, "undecided", "not shown to stay within 0.5"),
        (evaluation(match=0.05), None, "promote", "there was no champion"),
        (evaluation(rows=9), None, "undecided", "only 9 held-out rows"),
        (evaluation(rows=10), None, "promote", "there was no champion"),
    ],
)
def test_answer_alias_and_reason(made, champion, answer, words):
    found = judge(made, champion, Policy())
    assert found.answer == answer
    assert found.alias == ("champion" if answer == "promote" else "challenger")
    assert any(words in reason for reason in found.reasons)
    assert decide(made, champion, max_forgetting=0.5) == (found.alias, found.reasons)
    assert {item.outcome for item in found.criteria} <= {"passed", "failed", "undecided"}
    assert (answer == "promote") == all(item.outcome == "passed" for item in found.criteria)


def test_an_adapter_of_a_training_that_did_not_help_is_refused():
    assert judge(evaluation(), None, Policy()).answer == "promote"
    found = judge(evaluation(), None, Policy(), base_was_best=True)
    assert found.answer == "refuse"
    assert [item.test for item in found.criteria if item.outcome != "passed"] == ["comparison"]


def test_no_champion_is_made_on_rows_that_the_training_rows_give_away():
    found = judge(evaluation(), None, Policy(), leaks=3)
    assert (found.answer, found.alias) == ("refuse", "challenger")
    assert found.reasons[0].startswith("3 of the evaluation rows")


def test_all_faults_are_told():
    made = evaluation(loss=0.1, match=-0.4, forgetting=1.0, rows=5)
    kept = [item for item in judge(made, "1", Policy()).criteria if item.outcome != "passed"]
    assert [item.test for item in kept] == ["rows", "superiority", "comparison", "limit", "no proven harm"]


def test_every_criterion_has_its_numbers():
    made = judge(evaluation(champion=-0.6), "3", Policy(floors={"exact_match": 0.05}, margins={"exact_match": 0.3}))
    by_name = {(item.test, item.rival): item for item in made.criteria}
    against = by_name[("superiority", "champion version 3")]
    assert (against.value, against.margin, against.interval, against.rows) == (-0.6, 0.0, (-0.7, -0.5), 50)
    assert by_name[("floor", None)].margin == 0.05
    assert by_name[("floor", None)].value == pytest.approx(0.6)
    assert by_name[("non-inferiority", "the base model")].margin == 0.3
    assert by_name[("limit", "the base model")].margin == 0.5


def test_none_right_is_never_champion_because_the_loss_fell():
    """Case of the tour: 0 of 8 exact, 0 of 8 JSON, and the loss better."""
    none = share(0.0, 0.0, 0.0, rows=8)
    metrics = {"loss": pair(-0.5), "exact_match": none, "valid_json": none}
    made = dataclasses.replace(evaluation(), metrics=metrics, checkable=("exact_match", "valid_json"))
    found = judge(made, None, Policy())
    assert found.answer == "refuse"
    assert [item.metric for item in found.criteria if item.outcome == "failed"] == ["exact_match", "valid_json"]
    assert judge(dataclasses.replace(made, checkable=()), None, Policy()).answer == "promote"
    assert judge(made, None, Policy(floors={"exact_match": 0.0, "valid_json": 0.0})).answer == "promote"
    three = {"loss": pair(-0.5), "exact_match": share(0.0, 0.0, 0.0, rows=3)}
    assert judge(dataclasses.replace(made, metrics=three), None, Policy()).answer == "promote"
    one = dataclasses.replace(made, metrics={**metrics, "exact_match": share(0, 1 / 8), "valid_json": share(0, 1 / 8)})
    assert judge(one, None, Policy()).answer == "promote"


def test_floors_hold_either_way_and_must_be_measured():
    assert judge(evaluation(), None, Policy(floors={"exact_match": 0.7})).answer == "refuse"
    assert judge(evaluation(), None, Policy(floors={"exact_match": 0.59})).answer == "promote"
    assert judge(evaluation(), None, Policy(floors={"loss": 1.4})).answer == "refuse"
    assert judge(evaluation(), None, Policy(floors={"loss": 1.6})).answer == "promote"
    for policy in (Policy(floors={"bleu": 0.1}), Policy(margins={"bleu": 0.1}), Policy(improves=("bleu",))):
        found = judge(evaluation(), None, policy)
        assert found.answer == "refuse"
        assert any("bleu was not measured" in reason for reason in found.reasons)


def test_a_margin_must_be_shown_to_hold():
    def answer(spread, margin):
        made = evaluation(champion=-0.6, match_against=share(0.6, 0.58, spread))
        return judge(made, "3", Policy(margins={"exact_match": margin})).answer

    assert [answer(0.05, 0.1), answer(0.15, 0.1), answer(0.15, 0.3), answer(0.005, 0.01)] == [
        "promote", "undecided", "promote", "refuse",
    ]  # fmt: skip


def test_equal_answers_on_few_rows_do_not_show_that_no_harm_was_done():
    """8 rows, all the same before and after: a bootstrap of no changes has no width, and proves nothing."""

    def answer(rows):
        same = comparison([1.0] * rows, [1.0] * rows, None, unit="of rows", better="higher", seed=0, samples=400)
        assert same.interval == (0.0, 0.0)
        return judge(evaluation(champion=-0.6, match_against=same), "3", Policy(margins={"exact_match": 0.1})).answer

    assert [answer(8), answer(60)] == ["undecided", "promote"]


def test_forgetting_by_reference_set():
    sets = {"news": pair(0.2, 0.01), "law": pair(0.02, 0.01)}

    def found(**limits):
        return judge(evaluation(), None, Policy(max_forgetting=limits), sets)

    assert found(news=0.3).answer == "promote"
    assert found(news=0.1).answer == "refuse"
    assert found(news=0.3, law=0.01).answer == "refuse"
    assert judge(evaluation(), None, Policy(max_forgetting=0.1), sets).answer == "refuse"
    missing = found(code=0.1)
    assert missing.answer == "refuse"
    assert any("code was not measured" in reason for reason in missing.reasons)
    assert judge(evaluation(), None, Policy(), {"news": pair(0.6, 0.01)}).answer == "refuse"


def test_any_of_several_metrics_may_improve_under_holm():
    def answer(loss_z, match_z):
        loss, match = pair(-0.1 * loss_z / 1.96), share(0.4, 0.4 + 0.1 * match_z / 1.96)
        made = dataclasses.replace(evaluation(), metrics={"loss": loss, "exact_match": match})
        return judge(made, None, Policy(improves=("loss", "exact_match"))).answer

    assert answer(2.1, 0.0) == "undecided"  # alone it would pass: 2.1 > 1.96, and Holm asks 2.24 of the better of two
    assert answer(2.3, 0.0) == "promote"
    assert answer(0.0, 2.3) == "promote"
    assert answer(0.0, 0.0) != "promote"


def test_vetoes_are_one_family():
    """Ten metrics at 2.1 standard errors below: alone each is a proven harm, and of ten one is to be expected."""
    metrics = {"loss": pair(-0.5)} | {f"m{n}": share(0.4, 0.4) for n in range(9)}
    made = dataclasses.replace(evaluation(), metrics={**metrics, "m9": share(0.4, 0.4 - 0.1 * 2.1 / 1.96)})
    assert judge(made, None, Policy()).answer == "promote"
    alone = dataclasses.replace(evaluation(), metrics={"loss": pair(-0.5), "m9": made.metrics["m9"]})
    assert judge(alone, None, Policy()).answer == "refuse"
    worse = dataclasses.replace(made, metrics={**made.metrics, "m9": share(0.4, 0.4 - 0.1 * 3 / 1.96)})
    assert judge(worse, None, Policy()).answer == "refuse"


def test_rows_needed_is_the_textbook_number():
    found = judge(evaluation(loss=-0.05), None, ROWS_ALONE)
    error = 0.1 / 1.96
    assert found.rows_needed == math.ceil(50 * (error * (1.959964 + 0.841621) / 0.05) ** 2)
    assert f"needs about {found.rows_needed - 50} more rows to tell" in found.reasons[0]
    assert judge(evaluation(loss=0.05), None, ROWS_ALONE).rows_needed is None
    assert rows_needed(0.1, 0.1, 100, floor=0.05) is None


def test_no_number_of_rows_is_named_where_one_question_needs_seeds_and_not_rows():
    made = judge(evaluation(champion=-0.101, forgetting=0.45), "3", Policy(seed_noise=0.5))
    needed = {item.test: item.rows_needed for item in made.criteria if item.outcome == "undecided"}
    assert needed["superiority"] is None
    assert needed["limit"] is not None
    assert (made.answer, made.rows_needed) == ("undecided", None)


def test_rows_asked_for_tell_in_four_runs_of_five():
    generator = np.random.default_rng(0)
    rows = rows_needed(0.1, 1 / 30**0.5, 30)
    assert rows is not None
    told = 0
    for _ in range(300):
        change = generator.normal(-0.1, 1.0, size=rows)
        made = comparison([0.0] * rows, change.tolist(), None, unit="nats/token", better="lower", seed=0, samples=400)
        told += made.interval[1] < 0
    assert 0.72 <= told / 300 <= 0.88


def test_an_adapter_against_its_equal_is_rarely_promoted():
    """A/A on drawn losses, with row losses as skewed as real ones; the nominal rate of an interval's one end is 2.5 %."""
    generator = np.random.default_rng(1)
    promoted = 0
    for _ in range(200):
        labels = generator.integers(5, 60, size=30)
        base = labels * generator.gamma(2.0, 1.5, size=30)
        champion = base * 0.5
        challenger = champion + labels * (generator.exponential(0.3, size=30) - 0.3)
        arguments = {"unit": "nats/token", "better": "lower", "seed": 0, "samples": 400}
        one = comparison(base.tolist(), challenger.tolist(), labels.tolist(), **arguments)
        two = comparison(champion.tolist(), challenger.tolist(), labels.tolist(), **arguments)
        made = dataclasses.replace(evaluation(), metrics={"loss": one}, against={"champion": {"loss": two}})
        promoted += judge(made, "1", ROWS_ALONE).answer == "promote"
    assert promoted <= 16  # 10 is the nominal 5 %; 17 or more of 200 has a chance below 2 % there


def test_error_of_a_ratio_is_the_spread_of_resamples():
    generator = np.random.default_rng(3)
    weights = generator.integers(1, 30, size=80)
    base, adapted = generator.normal(2, 1, size=(2, 80)) * weights
    adapted = adapted - 3.0 * weights  # a change of every label alike is no spread
    resampled = []
    for _ in range(4000):
        rows = generator.integers(0, 80, size=80)
        resampled.append((adapted - base)[rows].sum() / weights[rows].sum())
    assert paired_error(base, adapted, weights) == pytest.approx(np.std(resampled), rel=0.06)
    made = comparison(
        base.tolist(), adapted.tolist(), weights.tolist(), unit="nats/token", better="lower", seed=0, samples=400
    )
    old = dataclasses.replace(made, standard_error=None)
    assert standard_error(old) == pytest.approx(standard_error(made), rel=0.15)


def test_holm_against_hand_counts():
    assert holm([0.01, 0.02, 0.03, 0.5]) == pytest.approx([0.04, 0.06, 0.06, 0.5])
    assert holm([]) == []
    assert p_value(-0.3, 0.1, 0.0) == pytest.approx(0.00135, rel=0.01)


def test_share_interval_is_wilsons():
    assert share_interval(share(0, 0, rows=10)) == pytest.approx((0.0, 0.2775), abs=1e-4)
    assert share_interval(pair(-0.5)) is None
    assert (
        share_interval(share(0, 0, rows=SHOWN_BY_NONE))[1]
        < 0.5
        < share_interval(share(0, 0, rows=SHOWN_BY_NONE - 1))[1]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        {"improves": ()},
        {"floors": {"exact_match": math.nan}},
        {"margins": {"exact_match": -0.1}},
        {"max_forgetting": -1.0},
        {"max_forgetting": {"news": math.inf}},
        {"seed_noise": -0.1},
    ],
)
def test_a_policy_that_means_nothing_is_refused(arguments):
    with pytest.raises(InputError, match="promotion"):
        Policy(**arguments)


def test_a_verdict_travels_in_the_record():
    found = judge(evaluation(champion=-0.05), "3", Policy())
    kept = Promotion("tweets", "4", found.alias, "3", found.reasons, found)
    assert from_json(Promotion, to_json(kept)) == kept
    assert judge(evaluation(champion=-0.05), "3", Policy(seed_noise=0.01)).policy_digest != found.policy_digest


def test_no_exact_match_is_no_fault():
    made = dataclasses.replace(evaluation(), metrics={"loss": pair(-0.5)})
    assert judge(made, None, Policy()).answer == "promote"
