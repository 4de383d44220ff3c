"""One verdict for every place that says it: role, rivals, bad news, and whether the prediction held."""

import dataclasses

import mlflow_samples as samples
import pytest
from report_samples import FORGOT, HIGHER, KEPT, LOWER, MATCHED, TIE, pair

from lora_select import records
from lora_select.pipeline.summaries import summary
from lora_select.report.answer import description, run_name
from lora_select.report.verdict import (
    before_training,
    change,
    delta,
    examples,
    few_shot_does_it,
    role,
    title,
    value,
    verdict,
)
from lora_select.selection.explanation import short


def predicting(gain, error):
    made = samples.decision()
    evidence = records.Evidence("predicted_gain", gain, error, "nats/token", "calibration")
    chosen = dataclasses.replace(made.candidates[0], evidence=(evidence,))
    return dataclasses.replace(made, candidates=(chosen, *made.candidates[1:]))


@pytest.mark.parametrize(
    ("metrics", "against", "forgetting", "words"),
    [
        ({"loss": LOWER}, {}, KEPT, "LoRA r 8 lowers held-out loss from 3.007 to 0.552 nats/token (95 % interval of the change -2.648 to -2.285, 86 rows)."),
        ({"loss": HIGHER}, {}, KEPT, "LoRA r 8 RAISES held-out loss from 3.007 to 3.400"),
        ({"loss": TIE}, {}, KEPT, "LoRA r 8 changes held-out loss by no more than noise, from 0.561 to 0.552"),
        ({"loss": LOWER}, {"plain_lora": {"loss": TIE}}, KEPT, "It cannot be told apart from plain LoRA (-0.030 to +0.012)."),
        ({"loss": LOWER}, {"champion": {"loss": HIGHER}}, KEPT, "It is WORSE than the champion (version 3) by 0.393"),
        ({"loss": LOWER}, {"champion": {"loss": LOWER}}, KEPT, "It is better than the champion (version 3) by 2.455"),
        ({"loss": LOWER}, {}, FORGOT, "On general reference text its loss RISES by 0.096 nats/token (+0.073 to +0.118)."),
        ({"loss": LOWER, "exact_match": pair(0.0, 0.0, 0.0, 0.0, unit="of rows", better="higher", rows=32)}, {}, KEPT, "Exactly right answers stay at 0.0 % of 32 rows."),
        ({"loss": LOWER, "exact_match": MATCHED}, {}, KEPT, "Exactly right answers rise from 0.0 % to 34.4 % of 32 rows."),
    ],
)  # fmt: skip
def test_what_came_out(tmp_path, metrics, against, forgetting, words):
    made = dataclasses.replace(
        samples.evaluation(tmp_path), metrics=metrics, against=against, forgetting=forgetting, champion_version="3"
    )
    said = verdict(samples.decision(), made)
    assert words in said
    assert ("On general" in said) == (forgetting is FORGOT)


RIGHT = pair(0.0, 1.0, 0.9, 1.0, unit="of rows", better="higher", rows=32)
ALL_RIGHT = pair(1.0, 1.0, 0.0, 0.0, unit="of rows", better="higher", rows=32)
SAME_MATCH = pair(0.25, 0.3125, -0.1, 0.2, unit="of rows", better="higher", rows=32)


@pytest.mark.parametrize(
    ("loss", "match", "enough", "last"),
    [
        (None, None, False, "Examples already reach 1.078 nats/token; training has to beat that."),
        (None, RIGHT, True, "FEW-SHOT ALREADY DOES IT: all 32 answers are exactly right (95 % interval of the share 89.1 % to 100.0 %)."),
        (HIGHER, None, False, "Examples do not lower the loss; training has to beat 3.007."),
    ],
)  # fmt: skip
def test_before_training_it_says_how_far_examples_get_and_forecasts_nothing(tmp_path, loss, match, enough, last):
    made = samples.few_shot(tmp_path, loss, match, enough=enough)
    head, said = before_training(made)
    reached = "3.007 -> 3.400" if loss else "3.007 -> 1.078"
    assert head.startswith(f"4 examples in the prompt: loss {reached}, exact match 0.0 % -> ")
    assert said == last
    assert summary(made).splitlines() == [head, said]
    none = dataclasses.replace(made, examples=0, metrics={}, files={}, notes=("no examples were laid before the rows",))
    assert before_training(none) == none.notes


@pytest.mark.parametrize(
    ("pairs", "does_it", "words"),
    [
        ({"loss": LOWER}, False, "It is better than the untrained model with examples in its prompt by 2.455"),
        ({"loss": TIE}, True, "FEW-SHOT ALREADY DOES IT. It cannot be told apart from the untrained model with examples in its prompt"),
        ({"loss": HIGHER}, True, "FEW-SHOT ALREADY DOES IT. It is WORSE than the untrained model"),
        ({"loss": LOWER, "exact_match": ALL_RIGHT}, True, "FEW-SHOT ALREADY DOES IT. It is better than"),
        ({"loss": LOWER, "exact_match": SAME_MATCH}, False, "Exactly right answers of 32: 25.0 % there, 31.2 % with the adapter, which cannot be told apart."),
        ({"loss": LOWER, "exact_match": MATCHED}, False, "Exactly right answers of 32: 0.0 % there, 34.4 % with the adapter."),
    ],
)  # fmt: skip
def test_after_training_few_shot_does_it_where_the_gain_over_it_is_noise(tmp_path, pairs, does_it, words):
    made = dataclasses.replace(samples.evaluation(tmp_path), metrics={"loss": LOWER}, against={"few_shot": pairs})
    said = verdict(samples.decision(), made)
    assert (few_shot_does_it(made), words in said, examples(made) in said) == (does_it, True, True)
    without = dataclasses.replace(made, against={})
    assert (few_shot_does_it(without), examples(without)) == (False, "")


@pytest.mark.parametrize(
    ("alias", "version", "words"),
    [
        ("champion", "4", "It is champion of tweets, version 4."),
        ("challenger", "4", "It is challenger of tweets, version 4."),
        ("awaiting approval", "4", "It is version 4 of tweets and waits for a person's approval."),
        ("rejected", "4", "It is version 4 of tweets, which a person rejected."),
        ("deferred", "", "Its promotion in tweets is deferred: the same command promotes it later."),
    ],
)
def test_each_role_has_one_sentence_everywhere(tmp_path, alias, version, words):
    promotion = samples.promotion(version, alias)
    assert role(promotion) == words
    assert summary(promotion).splitlines()[0] == words
    decision, evaluation = samples.decision(), samples.evaluation(tmp_path)
    assert words in verdict(decision, evaluation, promotion)
    assert words in description(samples.dataset(tmp_path), decision, evaluation, promotion, "nothing")


@pytest.mark.parametrize(
    ("gain", "error", "expected"), [(1.6, 0.1, "inside"), (4.15, 1.25, "OUTSIDE"), (0.1, 0.1, "OUTSIDE")]
)
def test_it_ends_with_whether_the_prediction_held(tmp_path, gain, error, expected):
    said = verdict(predicting(gain, error), samples.evaluation(tmp_path), samples.promotion())
    assert said.endswith(f"it took 1.600, {expected} the 95 % interval.")


def test_the_terminal_names_rivals_and_metrics_as_the_verdict_does(tmp_path):
    metrics = {"valid_json": MATCHED, "loss": HIGHER}
    made = dataclasses.replace(samples.evaluation(tmp_path), metrics=metrics, against={"plain_lora": {"loss": TIE}})
    lines = summary(made).splitlines()
    assert lines[0] == "held-out loss: 3.007 -> 3.400 (change +0.393 [+0.200 to +0.588] nats/token, worse; 86 rows)"
    assert lines[1] == (
        "share of answers that are JSON: 0.0 % -> 34.4 % (change +34.4 pp [+18.8 to +50.0 pp], better; 32 rows)"
    )
    assert lines[2] == "against plain LoRA: not distinguishable, -0.009 [-0.030 to +0.012] nats/token"


def test_what_fewer_bits_leave_of_the_gain_is_said_where_it_is_told(tmp_path):
    made = dataclasses.replace(samples.evaluation(tmp_path), stored=samples.stored())
    said = verdict(samples.decision(), made)
    assert "Merged and stored in fewer bits, it keeps of its gain in loss: 96.2 % (94.0 to 98.0) as nf4." in said
    assert "merged and stored as nf4: loss 0.940, of the gain left 96.2 % (94.0 to 98.0)" in summary(made).splitlines()
    assert "merged and stored as q8_0: loss 0.901, of the gain left not told" in summary(made).splitlines()


def test_names_say_dataset_choice_and_role():
    assert run_name("tweets", samples.decision("dora", 16), "champion") == "tweets · DoRA r 16 · champion"
    spec = dataclasses.replace(samples.decision().choice, variant="ia3", r=0)
    assert short(dataclasses.replace(samples.decision(), choice=spec)) == "IA3"
    assert short(samples.decision("rslora")) == "rsLoRA r 8"


def test_the_description_is_a_page_and_not_a_dump(tmp_path):
    dataset = dataclasses.replace(samples.dataset(tmp_path), name="<b>tweets</b> | all")
    text = description(dataset, samples.decision(), samples.evaluation(tmp_path), samples.promotion(), "0.50 h, 2 EUR")
    assert "<b>" not in text
    assert "| held-out loss (nats) | 2.500 | 0.900 | -1.600 [-1.650 to -1.550] |" in text
    assert text.endswith("\nTraining: 0.50 h, 2 EUR.\n")
    assert "the interval excludes zero" in text
    assert samples.SHA[:16] not in text
    assert len(text) < 8000


def test_words():
    assert change(TIE) == "not distinguishable"
    assert (change(LOWER), change(HIGHER), change(MATCHED)) == ("better", "worse", "better")
    assert (title("loss", LOWER), title("valid_json", MATCHED)) == (
        "held-out loss (nats/token)",
        "share of answers that are JSON",
    )
    assert (value(0.5, "of rows"), value(0.5, "nats"), delta(0.5, "of rows")) == ("50.0 %", "0.500", "+50.0 pp")


def test_what_retention_left_of_an_adapter_is_not_told_as_its_training(tmp_path):
    trained = samples.adapter(tmp_path)
    assert f"{trained.steps} steps" in summary(trained)
    served = dataclasses.replace(trained, export=f"{trained.export}; filter, strength 0.03")
    assert summary(served).startswith("the adapter after filter, strength 0.03")
