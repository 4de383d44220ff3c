"""Evaluation on a tiny model: losses equal the dense reference, an adapter that does nothing changes nothing."""

import json

import pytest
import torch

from lora_select import models
from lora_select.data.intake import intake
from lora_select.data.profile import profile
from lora_select.data.tokens import collate, label_loss, read_rows
from lora_select.evaluation import evaluate as module
from lora_select.evaluation.evaluate import EvaluationOptions, evaluate
from lora_select.evaluation.metrics import exact_match

OPTIONS = EvaluationOptions(exact_match_rows=3, max_new_tokens=4, bootstrap_samples=200, reference_tokens=512)


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("evaluate")
    rows = [{"prompt": f"q{n}", "completion": json.dumps({"n": n})} for n in range(30)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = intake(source=str(folder / "d.jsonl"), name="d", folder=folder, eval_fraction=0.4)
    base = models.resolve(str(tiny_model_folder), cache=folder / "cache")
    options = {"max_length": 200, "base_loss_rows": 2, "dtype": "float32", "device": "cpu", "folder": folder}
    profile(dataset, folder, base, **options)
    return base, folder


def adapter(tmp_path, base, *, strength):
    """A saved PEFT adapter whose B is `strength` times noise: 0 does nothing."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = get_peft_model(models.load_model(base.path), LoraConfig(r=4, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.copy_(strength * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / f"adapter-{strength}")
    return tmp_path / f"adapter-{strength}"


def run(material, tmp_path, folder, **others):
    base, data = material
    out = tmp_path / "out"
    out.mkdir(exist_ok=True)
    return evaluate(
        base,
        folder,
        eval_tokens=data / "eval_tokens.parquet",
        eval_rows=data / "eval.parquet",
        adapter_digest="a",
        dataset_digest="d",
        options=OPTIONS,
        others=others,
        folder=out,
    )


def test_an_adapter_that_does_nothing_changes_nothing(material, tmp_path):
    made = run(material, tmp_path, adapter(tmp_path, material[0], strength=0.0))
    loss = made.metrics["loss"]
    assert (loss.difference, loss.significant, made.forgetting.difference) == (0.0, False, 0.0)
    assert all(sample.base == sample.adapted for sample in made.samples)
    assert set(made.metrics) == {"loss", "exact_match", "valid_json"}


def test_numbers_equal_the_reference_and_rivals_are_compared(material, tmp_path):
    base, data = material
    strong, weak = adapter(tmp_path, base, strength=0.5), adapter(tmp_path, base, strength=0.1)
    made = run(material, tmp_path, strong, plain_lora=weak)
    rows = read_rows(data / "eval_tokens.parquet")
    model = models.load_model(base.path)
    with torch.no_grad():
        alone = [label_loss(model, collate([row], 3)) for row in rows]
    expected = sum(float(nll) for nll, _ in alone) / sum(int(count) for _, count in alone)
    assert made.metrics["loss"].base == pytest.approx(expected, rel=1e-5)
    assert made.metrics["loss"].rows == len(rows)
    rival = made.against["plain_lora"]["loss"]
    assert rival.adapted == made.metrics["loss"].adapted
    assert rival.base != made.metrics["loss"].base
    table = json.loads((tmp_path / "out" / made.rows_file.path).read_text())
    assert len(table["losses"]) == len(rows)
    assert set(table["answers"][0]) == {"expected", "base", "adapted", "plain_lora"}


def test_a_killed_evaluation_goes_on_where_it_was(material, tmp_path, monkeypatch):
    folder = adapter(tmp_path, material[0], strength=0.5)
    first = run(material, tmp_path, folder)
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("a model was loaded again"))
    assert run(material, tmp_path, folder) == first


def test_exact_match_of_text_and_json():
    assert exact_match('{"a": [1, 2]}', '{ "a":[1,2] }')
    assert not exact_match('{"a": [1, 2]}', '{"a": [2, 1]}')
    assert not exact_match("1", "1.0")
    assert not exact_match('{"a": 1}', '{"a": 1} and more')
