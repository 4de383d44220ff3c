"""The profile's numbers on rows whose counts are known, and the limits that stop a run before the model is loaded."""

import json
import random
import statistics

import pytest

from lora_select import models
from lora_select.data.intake import intake
from lora_select.data.profile import profile
from lora_select.data.tokens import collate, label_loss, read_rows
from lora_select.errors import InputError


@pytest.fixture
def prepared(tmp_path, tiny_model_folder):
    rows = [{"prompt": f"q{n:02}", "completion": "x" * (n % 7 + 1)} for n in range(50)]
    source = tmp_path / "d.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = intake(source=str(source), name="d", folder=tmp_path, eval_fraction=0.3)
    return dataset, tmp_path, models.resolve(str(tiny_model_folder), cache=tmp_path / "cache")


def run(prepared, **options):
    dataset, folder, base = prepared
    arguments = {"max_length": 200, "base_loss_rows": 8, "dtype": "float32", "device": "cpu", "folder": folder}
    return profile(dataset, folder, base, **(arguments | options))


def test_counts_and_base_loss(prepared):
    made = run(prepared)
    dataset, folder, _ = prepared
    rows = read_rows(folder / made.train_tokens_file.path)
    assert made.train.rows == len(rows) == dataset.train_rows
    assert made.train.label_tokens == sum(sum(row.label_mask) for row in rows)
    assert (
        made.train.tokens
        == sum(len(row.input_ids) for row in rows)
        == made.train.prompt_tokens + made.train.label_tokens
    )
    assert made.train.rows_truncated == made.train.label_tokens_lost == made.eval_rows_in_train == 0
    assert made.train.label_length.minimum == 2
    assert made.train.label_length.maximum == 8
    held_out = read_rows(folder / made.eval_tokens_file.path)[:8]
    assert made.base_loss_rows == 8
    losses = [[x.item() for x in label_loss(models.load_model(prepared[2].path), collate([r], 3))] for r in held_out]
    assert made.base_loss == pytest.approx(sum(n for n, _ in losses) / sum(c for _, c in losses), rel=1e-5)
    resampled = [random.Random(i).choices(losses, k=8) for i in range(2000)]
    spread = statistics.stdev(sum(n for n, _ in rows) / sum(c for _, c in rows) for rows in resampled)
    assert made.base_loss_se == pytest.approx(spread, rel=0.25)
    assert run(prepared) == made


def test_truncation_is_counted_and_warned_of(prepared):
    whole = run(prepared)
    cut = run(prepared, max_length=whole.train.length.maximum - 4)
    assert cut.train.rows_truncated > 0
    assert cut.train.label_tokens_lost == whole.train.label_tokens - cut.train.label_tokens > 0
    assert any("are cut" in warning for warning in cut.warnings)


def test_no_label_left_stops_before_the_model_is_loaded(prepared, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    with pytest.raises(InputError, match="no training row has a label token within `dataset.max_length` = 10"):
        run(prepared, max_length=10)
