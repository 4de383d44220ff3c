"""The gate: champion only for what beats base and champion beyond the interval; every refusal says its numbers."""

import dataclasses

import pytest

from lora_select.evaluation.gate import decide
from lora_select.records import Evaluation, FileRef, MetricComparison


def pair(difference, spread=0.1, better="lower"):
    interval = (difference - spread, difference + spread)
    sure = interval[0] > 0 or interval[1] < 0
    return MetricComparison(2.0, 2.0 + difference, difference, interval, 50, "nats/token", better, sure)


def evaluation(loss=-0.5, match=0.2, forgetting=0.05, champion=None):
    against = {} if champion is None else {"champion": {"loss": pair(champion)}}
    metrics = {"loss": pair(loss), "exact_match": pair(match, better="higher")}
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
    ],
)
def test_alias_and_reason(made, champion, alias, words):
    given, reasons = decide(made, champion, max_forgetting=0.5)
    assert given == alias
    assert any(words in reason for reason in reasons)


def test_all_faults_are_told():
    made = dataclasses.replace(evaluation(loss=0.1, match=-0.4, forgetting=1.0))
    assert len(decide(made, "1", max_forgetting=0.5)[1]) == 4
