"""lm-eval as a library: a local task, the loaded model, one number a document; a paired interval like any other metric's."""

import json

import pytest

from lora_select import models
from lora_select.errors import InputError, WorldError
from lora_select.evaluation import harness

TASK = """task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: colours.jsonl
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "tasks"
    folder.mkdir()
    (folder / "colours.yaml").write_text(TASK)
    rows = [{"q": f"row {n} is", "choices": ["blue", "green"], "gold": n % 2} for n in range(6)]
    (folder / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def by_hand(model, tokenizer, gold):
    """Sum of the choice's log-probabilities, as the harness defines accuracy of a multiple choice."""
    import torch

    found = []
    for row, right in enumerate(gold):
        totals = []
        for choice in (" blue", " green"):
            prompt = tokenizer(f"row {row} is", add_special_tokens=False)["input_ids"]
            ids = prompt + tokenizer(choice, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(torch.tensor([ids])).logits[0].log_softmax(-1)
            totals.append(sum(float(logits[at - 1, ids[at]]) for at in range(len(prompt), len(ids))))
        found.append(float(totals.index(max(totals)) == right))
    return tuple(found)


def test_one_number_a_document_as_counted_by_hand(tasks, tiny_model_folder):
    model = models.load_model(str(tiny_model_folder))
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    scores = harness.run(model, tokenizer, ["colours"], tasks, longest=512)
    assert list(scores) == ["colours_acc"]
    assert scores["colours_acc"].values == by_hand(model, tokenizer, [n % 2 for n in range(6)])
    assert (scores["colours_acc"].better, scores["colours_acc"].is_share) == ("higher", True)
    assert len(harness.run(model, tokenizer, ["colours"], tasks, limit=2)["colours_acc"].values) == 2


def test_bad_input_is_named(tasks, tmp_path, tiny_model_folder):
    with pytest.raises(InputError, match="'shapes' is not in .* there: colours"):
        harness.check(["shapes"], tasks)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="holds no .* file"):
        harness.check(["colours"], tmp_path / "empty")
    (tasks / "colours.jsonl").unlink()
    model, tokenizer = models.load_model(str(tiny_model_folder)), models.load_tokenizer(str(tiny_model_folder))
    with pytest.raises(WorldError, match="lm-eval failed on colours"):
        harness.run(model, tokenizer, ["colours"], tasks)
