"""The gate: champion only for what beats base and champion beyond the interval; every refusal says its numbers."""

import dataclasses

import pytest

from lora_select.evaluation.gate import decide
from lora_select.records import Evaluation, FileRef, MetricComparison


def pair(difference, spread=0.1, better="lower", rows=50):
    interval = (difference - spread, difference + spread)
    sure = interval[0] > 0 or interval[1] < 0
    return MetricComparison(2.0, 2.0 + difference, difference, interval, rows, "nats/token", better, sure)


def evaluation(loss=-0.5, match=0.2, forgetting=0.05, champion=None, rows=50):
    against = {} if champion is None else {"champion": {"loss": pair(champion)}}
    metrics = {"loss": pair(loss, rows=rows), "exact_match": pair(match, better="higher")}
    return Evaluation("a", "d", metrics, against, pair(forgetting), (), FileRef("rows.json", "0", 0), ())


@pytest.mark.parametrize(
    ("made", "champion", "alias", "words"),
    [
        (evaluation(), None, "champion", "there was no champion"),
        (evaluation(champion=-0.3), "3", "champion", "champion version 3"),
        (evaluation(champion=-0.05), "3", "challenger", "does not beat champion version 3's"),
        (evaluation(), "3", "challenger", "was not compared"),
        (evaluation(loss=-0.05), None, "challenger", "does not beat the base"),
        (evaluation(loss=0.5), None, "challenger", "does not beat the base"),
        (evaluation(match=-0.3), None, "challenger", "exact match fell"),
        (evaluation(forgetting=0.6), None, "challenger", "over the limit of 0.5"),
        (evaluation(forgetting=0.6), None, "challenger", "2.000 -> 2.600 nats/token, change +0.600 [+0.500, +0.700]"),
        (evaluation(match=0.05), None, "champion", "there was no champion"),
        (evaluation(rows=9), None, "challenger", "only 9 held-out rows"),
        (evaluation(rows=10), None, "champion", "there was no champion"),
    ],
)
def test_alias_and_reason(made, champion, alias, words):
    given, reasons = decide(made, champion, max_forgetting=0.5)
    assert given == alias
    assert any(words in reason for reason in reasons)


def test_all_faults_are_told():
    made = evaluation(loss=0.1, match=-0.4, forgetting=1.0, rows=5)
    assert len(decide(made, "1", max_forgetting=0.5)[1]) == 5


def test_no_exact_match_is_no_fault():
    made = dataclasses.replace(evaluation(), metrics={"loss": pair(-0.5)})
    assert decide(made, None, max_forgetting=0.5)[0] == "champion"
