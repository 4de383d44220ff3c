"""Evaluation on a tiny model: losses equal the dense reference, an adapter that does nothing changes nothing."""

import dataclasses
import json
import math

import pytest
import torch

from lora_select import models
from lora_select.data.general_text import CHUNK_TOKENS, reference_rows
from lora_select.data.intake import intake
from lora_select.data.labels.tokens import collate, label_loss, read_rows, write_rows
from lora_select.data.profile import profile
from lora_select.evaluation import model_losses as module
from lora_select.evaluation.evaluate import EvaluationOptions, evaluate, gains
from lora_select.models import rounding
from lora_select.records import DatasetProfile, read, write

TASK = """task: colours
dataset_path: json
dataset_kwargs: {data_files: {test: colours.jsonl}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{q}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{gold}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
OPTIONS = EvaluationOptions(exact_match_rows=3, max_new_tokens=4, bootstrap_samples=200, reference_tokens=512)


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("evaluate")
    rows = [{"prompt": f"q{n}", "completion": json.dumps({"n": n})} for n in range(30)]
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = intake(source=str(folder / "d.jsonl"), name="d", folder=folder, eval_fraction=0.4)
    base = models.resolve(str(tiny_model_folder), cache=folder / "cache")
    options = {"max_length": 200, "base_loss_rows": 2, "dtype": "float32", "device": "cpu", "folder": folder}
    write(folder / "profile.json", profile(dataset, folder, base, **options))
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


def run(material, tmp_path, folder, *, options=OPTIONS, progress=None, base_losses=(), **others):
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
        options=options,
        others=others,
        folder=out,
        progress=progress,
        before={"base": module.Measured(tuple(base_losses), (), ())},
    )


def test_what_the_profile_measured_of_the_base_is_not_measured_again(material, tmp_path):
    folder = adapter(tmp_path, material[0], strength=0.1)
    held = read(DatasetProfile, material[1] / "profile.json")
    assert len(held.base_losses) == held.base_loss_rows == 2
    whole = run(material, tmp_path, folder).metrics["loss"]
    (tmp_path / "again").mkdir()
    again = run(material, tmp_path / "again", folder, base_losses=held.base_losses).metrics["loss"]
    assert (again.base, again.adapted) == (pytest.approx(whole.base, rel=1e-5), whole.adapted)
    (tmp_path / "taken").mkdir()
    raised = [loss + 1000 for loss in held.base_losses]
    taken = run(material, tmp_path / "taken", folder, base_losses=raised).metrics["loss"]
    assert (taken.base > whole.base + 1, taken.adapted) == (True, whole.adapted)


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
    assert set(table["answers"][0]) == {"row_id", "prompt", "expected", "base", "adapted", "plain_lora"}
    assert {row["row_id"] for row in table["answers"]} <= {row["row_id"] for row in table["losses"]}


def test_a_killed_evaluation_goes_on_where_it_was(material, tmp_path, monkeypatch):
    folder = adapter(tmp_path, material[0], strength=0.5)
    first = run(material, tmp_path, folder)
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("a model was loaded again"))
    assert run(material, tmp_path, folder) == first


def test_another_adapter_of_the_same_name_is_measured_anew(material, tmp_path):
    base, _ = material
    first = run(
        material, tmp_path, adapter(tmp_path, base, strength=0.5), champion=adapter(tmp_path, base, strength=0.2)
    )
    second = run(
        material, tmp_path, adapter(tmp_path, base, strength=0.5), champion=adapter(tmp_path, base, strength=0)
    )
    assert second.metrics == first.metrics
    assert (
        second.against["champion"]["loss"].base == second.metrics["loss"].base != first.against["champion"]["loss"].base
    )


def test_a_trained_adapter_improves(material, tmp_path):
    """Twenty steps of Adam on a random model: the digits and braces of the answers are quickly learnt."""
    from peft import LoraConfig, get_peft_model

    base, data = material
    torch.manual_seed(2)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    model = get_peft_model(models.load_model(base.path), config)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    batch = collate(read_rows(data / "train_tokens.parquet"), 3)
    for _ in range(20):
        nll, count = label_loss(model, batch)
        optimizer.zero_grad()
        (nll.sum() / count.sum()).backward()
        optimizer.step()
    model.save_pretrained(tmp_path / "trained")
    loss = run(material, tmp_path, tmp_path / "trained").metrics["loss"]
    assert loss.significant
    assert loss.interval[1] < -0.5


def test_nothing_is_left_out_in_silence(material, tmp_path):
    base, data = material
    rows = read_rows(data / "eval_tokens.parquet")
    write_rows(tmp_path / "some.parquet", rows[2:])
    long = dataclasses.replace(base, max_position_embeddings=10)
    zero = adapter(tmp_path, base, strength=0)
    (tmp_path / "out").mkdir()
    made = evaluate(
        long,
        zero,
        eval_tokens=tmp_path / "some.parquet",
        eval_rows=data / "eval.parquet",
        adapter_digest="a",
        dataset_digest="d",
        options=OPTIONS,
        others={},
        folder=tmp_path / "out",
    )
    notes = "\n".join(made.notes)
    assert set(made.metrics) == {"loss"}
    assert made.samples == ()
    assert f"2 of {len(rows)} held-out rows have no label token" in notes
    assert f"{len(rows) - 2} questions are not asked" in notes
    assert "10 positions" in notes


def test_few_rows_are_noted_and_progress_ends_at_the_end(material, tmp_path):
    calls = []
    zero = adapter(tmp_path, material[0], strength=0)
    made = run(material, tmp_path, zero, progress=lambda done, total, what: calls.append((done, total, what)))
    assert calls[-1][0] == calls[-1][1]
    assert [done for done, _, _ in calls] == sorted(done for done, _, _ in calls)
    assert calls[-1][2] == "answers of adapted"
    assert any("only 3 rows for exact match" in note for note in made.notes)


def test_a_loss_that_is_not_finite_is_an_error(material, tmp_path):
    broken = adapter(tmp_path, material[0], strength=float("nan"))
    with pytest.raises(RuntimeError, match="the loss of row .* is nan"):
        run(material, tmp_path, broken)


def test_reference_rows_are_spread_and_all_labels_but_the_first(tiny_model_folder):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    rows = reference_rows(tokenizer, 1024)
    assert [len(row.input_ids) for row in rows] == [CHUNK_TOKENS] * 8
    assert all(row.label_mask == (False, *[True] * (CHUNK_TOKENS - 1)) for row in rows)
    assert len({row.input_ids for row in rows}) == 8
    assert len(reference_rows(tokenizer, 1)) == 2


def test_metrics_of_the_user_get_intervals_against_base_and_rivals(material, tmp_path, monkeypatch):
    base, _ = material
    options = dataclasses.replace(OPTIONS, metrics={"braces": {"regex": "[{]"}, "overlap": {"chrf": True}})
    strong, weak = adapter(tmp_path, base, strength=0.5), adapter(tmp_path, base, strength=0.1)
    made = run(material, tmp_path, strong, options=options, plain_lora=weak)
    for compared in (made.metrics, made.against["plain_lora"]):
        assert (compared["braces"].unit, compared["overlap"].unit) == ("of rows", "mean score")
        assert compared["overlap"].rows == 3
    assert made.checkable == ("exact_match", "valid_json", "braces")
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("another metric of the same answers loads no model"))
    assert "overlap" not in run(material, tmp_path, strong, plain_lora=weak).metrics


def test_tasks_of_the_harness_are_measured_once_for_each_model(material, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "colours.yaml").write_text(TASK)
    rows = [{"q": f"row {n} is", "choices": ["blue", "green"], "gold": n % 2} for n in range(4)]
    (tmp_path / "tasks" / "colours.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = dataclasses.replace(OPTIONS, tasks=("colours",), task_folder=str(tmp_path / "tasks"))
    zero = adapter(tmp_path, material[0], strength=0.0)
    made = run(material, tmp_path, zero, options=options)
    pair = made.metrics["colours_acc"]
    assert (pair.base, pair.difference, pair.rows, pair.unit) == (pair.adapted, 0.0, 4, "of rows")
    monkeypatch.setattr(module, "_load", lambda *_: pytest.fail("a model was loaded again"))
    assert run(material, tmp_path, zero, options=options) == made


FORMS = {"int8": 0.02, "nf4": 0.2, "q8_0": 0.02, "q4_0": 0.2}
"""Form -> how far it may move a loss of the tiny model, nats a token."""


def by_hand(path, form):
    """The model with every matrix as the form holds it."""
    if form in models.QUANTIZATIONS:
        return models.load_model(path, quantize=form)
    model = models.load_model(path)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2:
                head = name in (
                    "lm_head.weight",
                    "model.embed_tokens.weight" if model.config.tie_word_embeddings else "",
                )
                parameter.copy_(rounding.rounded(parameter, "q8_0" if head else form))
    return model


def test_base_and_merged_model_in_fewer_bits_are_arms_of_their_own(material, tmp_path, caplog):
    """Each holds the loss of the model as the form stores it, on the same rows; nothing else of the evaluation changes."""
    base, _ = material
    folder = adapter(tmp_path, base, strength=0.3)
    plain = run(material, tmp_path, folder)
    made = run(material, tmp_path, folder, options=dataclasses.replace(OPTIONS, quantized=tuple(FORMS)))
    assert (made.metrics, made.against, plain.stored) == (plain.metrics, plain.against, ())
    assert "MatMul8bitLt" not in caplog.text  # else a line for each layer of each batch
    models.write_merged(models.with_adapter(models.load_model(base.path), folder), base.path, tmp_path / "merged")
    rows = read_rows(material[1] / "eval_tokens.parquet")
    labels, exact = sum(module.label_counts(rows)), made.metrics["loss"]
    assert [one.form for one in made.stored] == list(FORMS)
    for one in made.stored:
        loss = one.metrics["loss"]
        for path, found, unstored in (
            (base.path, one.base_loss, exact.base),
            (str(tmp_path / "merged"), loss.adapted, exact.adapted),
        ):
            expected = math.fsum(module.row_losses(by_hand(path, one.form), rows, 3, 8, "cpu")) / labels
            assert found == pytest.approx(expected, rel=1e-5)
            assert 0 < abs(found - unstored) < FORMS[one.form]
        assert (loss.base, one.metrics["exact_match"].rows) == (exact.adapted, 3)
    assert not list((tmp_path / "out").glob(".merged-*"))
    table = json.loads((tmp_path / "out" / "rows.json").read_text())
    assert sum(row["merged_q4_0_loss"] for row in table["losses"]) / labels == pytest.approx(loss.adapted)
    assert "merged_q4_0" in table["answers"][0]
    assert "base_q4_0" not in table["answers"][0]


def test_what_is_left_of_the_gain_is_a_share_with_its_interval():
    """Nine tenths of every row's gain are left: the interval is that point. Of no gain no share is told."""
    before = [20.0, 30.0, 25.0, 40.0, 22.0, 31.0]
    after = [5.0, 8.0, 9.0, 10.0, 4.0, 7.0]
    kept = [first - 0.9 * (first - second) for first, second in zip(before, after, strict=True)]
    measured = {
        name: module.Measured(tuple(losses), (), ())
        for name, losses in {"base": before, "adapted": after, "base_nf4": before, "merged_nf4": kept}.items()
    }
    (one,) = gains(measured, {"nf4": {}}, [10] * 6, seed=0, samples=200)
    assert (one.form, one.left, one.interval) == ("nf4", pytest.approx(0.9), pytest.approx((0.9, 0.9)))
    assert one.base_loss == pytest.approx(sum(before) / 60)
    noise = measured | {"adapted": module.Measured((21.0, 29.0, 26.0, 39.0, 23.0, 30.5), (), ())}
    (one,) = gains(noise, {"nf4": {}}, [10] * 6, seed=0, samples=200)
    assert (one.left, one.interval) == (None, None)
