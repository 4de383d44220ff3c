"""Records are valid JSON, read back equal, and refuse what was not measured."""

import math

import mlflow_samples
import pytest
import training_jobs

from lora_select import records
from lora_select.records import Adapter, MetricComparison, Promotion, digests
from lora_select.training.job import read_job, write_job

PROMOTION = Promotion("m", "1", "champion", None, ("beats base",))


def test_round_trip_is_exact(tmp_path):
    path = tmp_path / "promotion.json"
    records.write(path, PROMOTION)
    assert records.read(Promotion, path) == PROMOTION
    assert records.digest(PROMOTION) == records.sha256_file(path)
    assert [p.name for p in tmp_path.iterdir()] == ["promotion.json"]


def test_nan_is_refused():
    with pytest.raises(ValueError, match="[Oo]ut of range|not JSON compliant"):
        records.to_json(MetricComparison(math.nan, 1.0, 0.0, (0.0, 0.0), 1, "", "lower", False))
    with pytest.raises(RuntimeError, match="loss is nan"):
        records.finite(math.nan, "loss")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "Promotion record"), ('{"model_name": "m"}', "version"), ('{"surplus": 1}', "surplus|model_name")],
)
def test_bad_text_names_place_and_field(text, words):
    with pytest.raises(ValueError, match=words) as caught:
        records.from_json(Promotion, text, place="runs/x/promotion.json")
    assert "runs/x/promotion.json" in str(caught.value)


def test_an_adapter_of_the_version_before_is_read_under_its_old_names(tmp_path):
    present = mlflow_samples.adapter(tmp_path)
    old = records.to_json(present).replace('"reference_logits": {', '"probe_file": {')
    assert '"probe_file"' in old
    assert records.from_json(Adapter, old) == present


def test_a_training_job_of_the_version_before_is_read_under_its_old_names(tmp_path, tiny_model_folder):
    present = training_jobs.job(tmp_path, tiny_model_folder, count=8)
    file = write_job(tmp_path, present)
    file.write_text(file.read_text().replace('"check_tokens"', '"probe_tokens"'))
    assert '"probe_tokens"' in file.read_text()
    assert read_job(file) == present


def test_keys_do_not_depend_on_order_and_refuse_nan():
    assert digests.key_of({"a": 1, "b": [1.5, "ü"]}) == digests.key_of({"b": [1.5, "ü"], "a": 1})
    assert digests.key_of({"a": 1}) != digests.key_of({"a": 2})
    with pytest.raises(ValueError, match="[Oo]ut of range|not JSON compliant"):
        digests.key_of({"a": math.inf})
