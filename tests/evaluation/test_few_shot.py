"""Examples in the prompt of an untrained model: which rows are laid there, how many fit, and what is said of what they reach."""

import dataclasses
import itertools
import json

import pytest

from lora_select import models, records
from lora_select.data.intake import intake, read_canonical
from lora_select.data.profile import profile
from lora_select.evaluation import few_shot as module
from lora_select.evaluation.evaluate import EvaluationOptions, evaluate
from lora_select.evaluation.material import gather
from lora_select.evaluation.model_losses import UNMEASURED, Measured

OPTIONS = EvaluationOptions(3, 4, bootstrap_samples=200, reference_tokens=512, few_shot=2)


def read_in(folder, rows, base, name="d"):
    """Rows as a dataset with its token rows, all in one folder."""
    folder.mkdir(exist_ok=True)
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = intake(source=str(folder / "rows.jsonl"), name=name, folder=folder, eval_fraction=0.4)
    profile(dataset, folder, base, max_length=200, base_loss_rows=2, dtype="float32", device="cpu", folder=folder)
    return dataset


@pytest.fixture(scope="module")
def material(tmp_path_factory, tiny_model_folder):
    folder = tmp_path_factory.mktemp("few-shot")
    base = models.resolve(str(tiny_model_folder), cache=folder / "cache")
    rows = [{"prompt": f"q{n}", "completion": json.dumps({"n": n})} for n in range(30)]
    return base, folder, read_in(folder, rows, base)


def laid(material, *, longest=None, **changes):
    base, data, _ = material
    tokenizer, options = models.load_tokenizer(base.path), dataclasses.replace(OPTIONS, **changes)
    own = gather(tokenizer, data / "eval_tokens.parquet", data / "eval.parquet", options, longest=None)
    files = (data / "eval.parquet", data / "train.parquet")
    return own, *module.lay(own, tokenizer, *files, options, longest=longest)


def measured(material, folder, *, max_length=200, known=UNMEASURED, **changes):
    base, data, dataset = material
    folder.mkdir()
    shown: list[str] = []
    made = module.measure_few_shot(
        base,
        dataset,
        eval_tokens=data / "eval_tokens.parquet",
        rows_folder=data,
        max_length=max_length,
        options=dataclasses.replace(OPTIONS, **changes),
        folder=folder,
        known=known,
        progress=lambda done, total, what: shown.append(f"{done / total:.2f} {what}"),
    )
    return made, shown


def test_the_first_training_rows_stand_before_each_row_and_its_answer_stays_the_label(material):
    base, data, _ = material
    own, count, shown, words = laid(material)
    assert (count, words.partition(" in the prompt")[0]) == (2, "2 training rows stand")
    tokenizer = models.load_tokenizer(base.path)
    (first, *_), (alone, *_) = shown.rows, own.rows
    first_two = [row for _, row in itertools.islice(read_canonical(data / "train.parquet"), 2)]
    text = tokenizer.decode(list(first.input_ids))
    assert all(turn["content"] in text for row in first_two for turn in row["messages"])
    said = [[t for t, m in zip(row.input_ids, row.label_mask, strict=True) if m] for row in (first, alone)]
    assert said[0] == said[1]
    assert all(one.expected == other.expected for one, other in zip(shown.questions, own.questions, strict=True))


def test_as_many_are_laid_there_as_fit(material):
    room = OPTIONS.max_new_tokens
    sizes = [max(len(row.input_ids) for row in laid(material, few_shot=count)[2].rows) + room for count in range(1, 9)]
    assert sizes == sorted(sizes)
    for longest, fitting in ((sizes[7], 8), (sizes[7] - 1, 7), (sizes[4], 5), (sizes[0], 1)):
        _, count, shown, words = laid(material, longest=longest, few_shot=8)
        assert (count, max(len(row.input_ids) for row in shown.rows) + room <= longest) == (fitting, True)
        assert (f"as many of 8 as fit into {longest} tokens" in words) == (fitting < 8)
    assert laid(material, longest=sizes[0] - 1, few_shot=8)[1:3] == (0, None)


def test_auto_fills_what_the_dataset_s_length_leaves(material, tmp_path):
    count = laid(material, longest=150, few_shot="auto")[1]
    longer = max(len(row.input_ids) for row in laid(material, few_shot=count + 1)[2].rows) + OPTIONS.max_new_tokens
    assert 1 < count < 8
    assert longer > 150
    assert laid(material, few_shot="auto")[1] == 8
    made, _ = measured(material, tmp_path / "auto", max_length=150, few_shot="auto")
    assert made.examples == count
    assert measured(material, tmp_path / "eight", max_length=150, few_shot=8)[0].examples == 8


def test_both_models_are_measured_on_the_same_rows_and_what_was_known_is_taken(material, tmp_path):
    made, said = measured(material, tmp_path / "whole")
    assert (made.examples, made.enough, set(made.files)) == (2, False, {"base", "few_shot"})
    assert set(made.metrics) == {"loss", "exact_match", "valid_json"}
    loss, match = made.metrics["loss"], made.metrics["exact_match"]
    assert (loss.rows, match.rows) == (made.metrics["loss"].rows, 3)
    assert loss.base != loss.adapted
    assert said[-1].startswith("1.00")
    assert any("with examples" in line for line in said)
    assert [float(line.split()[0]) for line in said] == sorted(float(line.split()[0]) for line in said)
    assert records.from_json(records.FewShot, records.to_json(made)) == made
    known = module.earlier(made, tmp_path / "whole")["base"].losses[:2]
    again, _ = measured(material, tmp_path / "raised", known=Measured(tuple(one + 1000 for one in known), (), ()))
    assert again.metrics["loss"].base > loss.base + 1
    assert again.metrics["loss"].adapted == pytest.approx(loss.adapted)


def test_the_evaluation_holds_the_adapter_against_the_same_measurement(material, tmp_path, monkeypatch):
    """Of the untrained model it measures the reference text alone: no row and no question a second time."""
    from peft import LoraConfig, get_peft_model

    from lora_select.evaluation import model_losses

    base, data, dataset = material
    made, _ = measured(material, tmp_path / "before")
    get_peft_model(models.load_model(base.path), LoraConfig(r=2)).save_pretrained(tmp_path / "adapter")
    asked, answered = [], []
    counted, generated = model_losses.row_losses, model_losses.metrics.generate

    def row_losses(model, rows, *rest):
        asked.append((hasattr(model, "peft_config"), len(rows)))
        return counted(model, rows, *rest)

    def generate(model, *told, **options):
        answered.append(hasattr(model, "peft_config"))
        return generated(model, *told, **options)

    monkeypatch.setattr(model_losses, "row_losses", row_losses)
    monkeypatch.setattr(model_losses.metrics, "generate", generate)
    (tmp_path / "after").mkdir()
    judged = evaluate(
        base,
        tmp_path / "adapter",
        eval_tokens=data / "eval_tokens.parquet",
        eval_rows=data / "eval.parquet",
        adapter_digest="a",
        dataset_digest=dataset.digest,
        options=OPTIONS,
        others={},
        folder=tmp_path / "after",
        before=module.earlier(made, tmp_path / "before"),
    )
    assert [rows for adapted, rows in asked if not adapted] == [0, 4]  # no row, and the chunks of reference text
    assert answered == [True]
    for name in ("loss", "exact_match", "valid_json"):
        assert judged.metrics[name].base == made.metrics[name].base
        assert judged.against["few_shot"][name].base == made.metrics[name].adapted
        assert judged.against["few_shot"][name].adapted == judged.metrics[name].adapted
    rows = json.loads((tmp_path / "after" / "rows.json").read_text())
    assert {"few_shot", "base"} <= set(rows["answers"][0])


def test_rows_of_several_answers_get_no_examples_and_say_so(material, tmp_path):
    base, _, _ = material
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 2
    talks = [{"messages": [*turns[:3], {"role": "assistant", "content": str(n)}]} for n in range(30)]
    dataset = read_in(tmp_path / "talks", talks, base)
    made, said = measured((base, tmp_path / "talks", dataset), tmp_path / "out")
    assert (made.examples, made.metrics, made.files, said) == (0, {}, {}, [])
    assert "not all of one question and one answer" in made.notes[0]


@pytest.mark.parametrize(("share", "rows", "enough"), [(1.0, 32, True), (31 / 32, 32, False), (1.0, 9, False)])
def test_examples_are_enough_where_they_leave_no_answer_wrong_on_rows_that_tell(share, rows, enough):
    match = records.MetricComparison(0.0, share, share, (0.0, 1.0), rows, "of rows", "higher", True)
    assert module.is_enough({"exact_match": match}) == enough
    assert not module.is_enough({})
