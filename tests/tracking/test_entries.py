import dataclasses
import json

import mlflow_samples as samples
import pytest

from lora_select import records
from lora_select.tracking import names
from lora_select.tracking.entries import Entries, fit, from_plain, of, rival

KNOWN = {
    "eval/loss/base", "eval/loss/adapted", "eval/loss/difference", "eval/loss/interval_low", "eval/loss/interval_high",
    "eval/exact_match/adapted", "eval/forgetting/difference", "cost/tokens_per_s", "cost/train_minutes",
    "cost/analyze_minutes", "adapter/parameters", "profile/base_loss", "profile/train/label_tokens", "train/final_loss",
    "spectrum/signal_energy", "select/score", "plan/minutes_expected", "proof/max_logit_difference",
    "dataset/train_rows",
}  # fmt: skip


def test_metric_names_are_what_they_were(tmp_path):
    """A renamed metric splits the history of every chart: change this list knowingly."""
    made = {key for record in samples.every_record(tmp_path) for key in of(record, tmp_path).metrics}
    assert made >= KNOWN
    assert set(names.TRAIN_STEP.values()) == {
        "train/loss", "train/learning_rate", "train/grad_norm", "train/tokens", "train/tokens_per_s",
        "train/memory_gib", "validation/loss",
    }  # fmt: skip


def test_every_step_field_has_a_metric():
    fields = {field.name for field in dataclasses.fields(records.StepMetrics)}
    assert set(names.TRAIN_STEP) == fields - {"step", "timestamp_ms"}


def test_every_record_type_has_a_label_and_entries_that_hold_its_json(tmp_path):
    for record in samples.every_record(tmp_path):
        label = names.LABELS[type(record).__name__]
        text = of(record, tmp_path).texts[f"records/{label}.json"]
        assert records.from_json(type(record), text) == record


def test_an_unknown_type_is_named():
    with pytest.raises(TypeError, match="SourceFile"):
        of(records.SourceFile("x", samples.SHA, 1, 1))


def test_the_same_keys_for_every_variant():
    keys = [
        (set(of(samples.decision(v)).metrics), set(of(samples.decision(v)).params))
        for v in ("lora", "rslora", "dora", "pissa", "eva")
    ]
    assert all(each == keys[0] for each in keys)
    assert set(names.SPEC_PARAMS) <= keys[0][1]


def test_the_candidate_table_holds_every_candidate_with_its_reason():
    table = json.loads(of(samples.decision("rslora")).texts["tables/candidates.json"])
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["candidate"] for row in rows if row["chosen"]] == ["rslora@8"]
    assert all(row["rejected"] for row in rows if not row["chosen"])
    assert len(rows) == 5


def test_long_values_are_kept_whole_as_artifacts():
    long = "x" * 6001
    made = fit(Entries(params={"p": long, "short": "y" * 6000}, tags={"t": "z" * 8001, "fits": "z" * 8000}))
    assert len(made.params["p"]) < 400
    assert "long/p.txt" in made.params["p"]
    assert made.texts == {"long/p.txt": long, "long/t.txt": "z" * 8001}
    assert len(made.params["short"]) == 6000
    assert len(made.tags["fits"]) == 8000


def test_entries_survive_json(tmp_path):
    for record in samples.every_record(tmp_path):
        made = of(record, tmp_path)
        assert from_plain(json.loads(json.dumps(dataclasses.asdict(made)))) == made


def test_a_forecast_is_logged_where_one_was_given(tmp_path):
    made = samples.adapter(tmp_path)
    assert not any("forecast" in name for name in of(made, tmp_path).metrics)
    told = dataclasses.replace(made, forecast=records.Evidence("forecast", 0.9, 0.1, "nats/token", "step 6 of 24"))
    found = of(told, tmp_path).metrics
    assert (found["train/forecast_gain"], found["train/forecast_gain_se"]) == (0.9, 0.1)


def test_a_rival_gets_the_same_metric_names(tmp_path):
    evaluation = samples.evaluation(tmp_path, 0.8, rival_loss=1.1)
    metrics = rival(evaluation, "plain_lora").metrics
    assert metrics["eval/loss/adapted"] == 1.1
    assert metrics["eval/loss/base"] == 2.5
    assert set(metrics) <= set(of(evaluation).metrics)
    assert of(evaluation).metrics["eval/loss/vs_plain_lora/base"] == 1.1


def test_the_merged_model_in_fewer_bits_has_its_own_keys(tmp_path):
    evaluation = dataclasses.replace(samples.evaluation(tmp_path, 0.9), stored=samples.stored())
    metrics = of(evaluation).metrics
    assert (metrics["eval/loss/merged_nf4/base_loss"], metrics["eval/loss/merged_nf4/adapted"]) == (2.75, 0.94)
    assert (metrics["eval/loss/merged_nf4/left"], metrics["eval/exact_match/merged_nf4/adapted"]) == (0.962, 0.6)
    assert "eval/loss/merged_q8_0/left" not in metrics
    assert set(of(samples.evaluation(tmp_path, 0.9)).metrics) < set(metrics)
