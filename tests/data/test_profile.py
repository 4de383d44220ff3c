"""The profile's numbers on rows whose counts are known, and the limits that stop a run before the model is loaded."""

import json
import random
import shutil
import statistics

import pytest

from lora_select import models
from lora_select.data.intake import intake
from lora_select.data.labels.tokens import collate, label_loss, read_rows
from lora_select.data.profile import profile
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


REFUSING = (
    "{% for m in messages %}{% if 'bad' in m['content'] %}{{ raise_exception('no bad words') }}{% endif %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def with_rows(tmp_path, model, rows, template=None, **changes):
    """A dataset of `rows` and a copy of the model with another template or config."""
    folder = tmp_path / "changed"
    shutil.copytree(model, folder)
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = intake(source=str(source), name="d", folder=tmp_path, eval_fraction=0.3)
    return dataset, tmp_path, models.resolve(str(folder), cache=tmp_path / "cache")


def test_rows_that_the_template_refuses_are_counted_with_their_places(tmp_path, tiny_model_folder):
    rows = [{"prompt": f"q{n}", "completion": "bad" if n == 5 else f"a{n}"} for n in range(40)]
    prepared = with_rows(tmp_path, tiny_model_folder, rows, REFUSING)
    made = run(prepared)
    assert [(item.count, item.examples) for item in made.unusable] == [(1, ("rows.jsonl:6",))]
    assert "no bad words" in made.unusable[0].reason
    assert made.train.rows_unusable + made.eval.rows_unusable == 1
    assert made.train.trained + made.eval.trained == 39
    assert "rows.jsonl:6" in made.warnings[0]
    with pytest.raises(InputError) as caught:
        run(prepared, max_unusable=0.01)
    assert all(
        word in str(caught.value) for word in ("1 of 40", "rows.jsonl:6", "no bad words", "dataset.max_unusable")
    )


def test_too_many_such_rows_stop_the_run_with_three_of_them(tmp_path, tiny_model_folder, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    rows = [{"prompt": f"q{n}", "completion": "bad" * (n % 2) + f"a{n}"} for n in range(40)]
    with pytest.raises(InputError) as caught:
        run(with_rows(tmp_path, tiny_model_folder, rows, REFUSING))
    assert "20 of 40" in str(caught.value)
    assert str(caught.value).count("no bad words") == 3


def test_rows_whose_prompt_alone_is_too_long_are_said_first(tmp_path, tiny_model_folder):
    rows = [{"prompt": "long " * 60 if n % 10 == 0 else f"q{n}", "completion": f"a{n}"} for n in range(50)]
    made = run(with_rows(tmp_path, tiny_model_folder, rows), max_length=100)
    assert made.train.rows_without_labels > 0
    assert made.train.rows_truncated == 0
    assert made.warnings[0].startswith(f"{made.train.rows_without_labels} of {made.train.rows} training rows left out")


def test_a_turn_in_a_text_of_its_own_is_a_text_more(tmp_path, tiny_model_folder):
    cut = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] if loop.last or m['role'] == 'user' else m['content'][:1] ~ '…' ~ "
        "m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    rows = [
        {"messages": [*turns, {"role": "user", "content": f"r{n}"}, {"role": "assistant", "content": "b"}]}
        for n in range(20)
    ]
    made = run(with_rows(tmp_path, tiny_model_folder, rows, cut))
    assert made.train.texts == made.train.trained == 2 * made.train.rows
    assert len(read_rows(tmp_path / made.train_tokens_file.path)) == made.train.texts
    assert any("each turn is learnt in a text of its own" in note for note in made.notes)


def test_an_end_that_no_server_knows_is_warned_of(tmp_path, tiny_model_folder):
    rows = [{"prompt": f"q{n}", "completion": f"a{n}"} for n in range(20)]
    other = "{% for m in messages %}{{ m['content'] }}<|endoftext|>{% endfor %}"
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    known = run(with_rows(tmp_path / "a", tiny_model_folder, rows))
    unknown = run(with_rows(tmp_path / "b", tiny_model_folder, rows, other))
    assert not any("eos_token_id" in warning for warning in known.warnings)
    assert any("<|endoftext|>" in warning and "eos_token_id" in warning for warning in unknown.warnings)


def test_a_token_without_an_embedding_is_refused_before_the_model_is_loaded(tmp_path, tiny_model_folder, monkeypatch):
    monkeypatch.setattr(models, "load_model", lambda *_, **__: pytest.fail("the model was loaded"))
    dataset, folder, base = with_rows(
        tmp_path, tiny_model_folder, [{"prompt": f"q{n}", "completion": "<new>"} for n in range(20)]
    )
    tokenizer = models.load_tokenizer(base.path)
    tokenizer.add_tokens(["<new>"])
    tokenizer.save_pretrained(base.path)
    with pytest.raises(InputError) as caught:
        run((dataset, folder, base))
    assert "<new>" in str(caught.value)
    assert "260" in str(caught.value)
