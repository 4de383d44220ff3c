"""The answer in plain words: role, rivals, and whether the prediction held; nothing that only the library's authors can read."""

import dataclasses

import mlflow_samples as samples
import pytest

from lora_select import records
from lora_select.report import answer


def predicting(gain, error):
    made = samples.decision()
    evidence = records.Evidence("predicted_gain", gain, error, "nats/token", "calibration")
    chosen = dataclasses.replace(made.candidates[0], evidence=(evidence,))
    return dataclasses.replace(made, candidates=(chosen, *made.candidates[1:]))


@pytest.mark.parametrize(
    ("gain", "error", "expected"), [(1.6, 0.1, "INSIDE"), (4.15, 1.25, "OUTSIDE"), (0.1, 0.1, "OUTSIDE")]
)
def test_the_line_says_whether_the_prediction_held(tmp_path, gain, error, expected):
    line = answer.verdict(predicting(gain, error), samples.evaluation(tmp_path), samples.promotion())
    assert line.endswith(f"came out 1.600: {expected} its interval.")


def test_the_line_names_role_and_rivals(tmp_path):
    """A DoRA that is worse than champion and plain LoRA must not end as `lowers held-out loss` alone."""
    made = samples.evaluation(tmp_path, 0.9, rival_loss=0.5)
    against = {**made.against, "champion": {"loss": samples.pair(0.91, 0.9)}}
    promotion = dataclasses.replace(samples.promotion("4"), previous_champion="3")
    line = answer.verdict(samples.decision("dora"), dataclasses.replace(made, against=against), promotion)
    assert line.startswith("Challenger, version 4 of tweets: DoRA r 8 lowers held-out loss")
    assert "ties with champion version 3" in line
    assert "is WORSE than plain LoRA (+0.400 [+0.350, +0.450])" in line


def test_a_loss_that_rose_or_stayed_says_so(tmp_path):
    assert "RAISES" in answer.verdict(samples.decision(), samples.evaluation(tmp_path, 2.9))
    line = answer.verdict(samples.decision(), samples.evaluation(tmp_path, 2.51))
    assert line.startswith("Not judged: LoRA r 8 leaves held-out loss where it was")


def test_names_say_dataset_choice_and_role():
    assert answer.run_name("tweets", samples.decision("dora", 16), "champion") == "tweets · DoRA r 16 · champion"
    spec = dataclasses.replace(samples.decision().choice, variant="ia3", r=0)
    assert answer.choice(dataclasses.replace(samples.decision(), choice=spec)) == "ia3"


def test_the_description_is_a_page_and_not_a_dump(tmp_path):
    dataset = dataclasses.replace(samples.dataset(tmp_path), name="<b>tweets</b> | all")
    energy = records.Energy(0.02, "estimated", "2 CPU threads")
    cost = records.Cost("measured", 1e13, 0.5, 1, 0.5, energy, 1.5, "EUR", ())
    text = answer.description(dataset, samples.decision(), samples.evaluation(tmp_path), samples.promotion(), cost)
    assert "<b>" not in text
    assert "| held-out loss | 2.500 | 0.900 | -1.600 [-1.650, -1.550] |" in text
    assert "0.020 kWh (estimated), 1.50 EUR" in text
    assert "the interval excludes zero" in text
    assert samples.SHA[:16] not in text
    assert len(text) < 8000
