"""The one door on a tiny model that was trained for real: what is served, what is recorded, and the command around it."""

import argparse
import dataclasses
import inspect
import json
import shutil

import pytest
import torch
from moved_adapters import MODULES
from safetensors.torch import load_file, save_file
from test_update_forms import by_peft, edit, saved
from training_jobs import plan, spec

from lora_select import models, records
from lora_select.cli import retain as command
from lora_select.cli.main import main
from lora_select.config import RetentionConfig
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError, WorldError
from lora_select.records import PathPoint, Retention
from lora_select.retention import forms
from lora_select.retention.decide import decide, summary
from lora_select.retention.one_adapter import _few_labels, retain_adapter
from lora_select.retention.plot import frontier, points
from lora_select.retention.settings import LINES_OWN, RetentionSettings, TaskRows, selection_rows, split_rows
from lora_select.retention.standalone import adapter_folder, read_parts, read_rows, retain
from lora_select.training import trials, validation

SETTINGS = RetentionSettings(
    references=("prose",), judges=("code",), task_tokens=1500, reference_tokens=1500, judging_units=6, tolerance="8%"
)


def rows(count, seed=0):
    """A task of few tokens: a run of one letter, then always the same two."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        letter = int(torch.randint(100, 120, (1,), generator=generator))
        ids = (*[letter] * (6 + index % 5), 200, 201)
        made.append(TokenRow(f"t{seed}-{index}", ids, (*[False] * (len(ids) - 2), True, True)))
    return made


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model_folder):
    """An adapter that learnt the task in thirty steps and lost some of the little that a random model knows."""
    folder = tmp_path_factory.mktemp("trained")
    given, steps = spec(), plan(num_processes=1, total_steps=30, learning_rate=3e-3, epochs=60.0)
    with trials.adapted(models.load_model(str(tiny_model_folder)), given, steps) as network:
        losses = trials.train(network, given, steps, rows(64), 3)
        network.save_pretrained(str(folder))
    assert losses[-1] < losses[0] - 0.7  # the tiny model cannot fall further: its embeddings are small
    return folder


def run(base, adapter, folder, others=None, task=rows, **changes):
    folder.mkdir(exist_ok=True)
    split = TaskRows(task(160, seed=0), task(16, seed=1), task(16, seed=2))
    settings = dataclasses.replace(SETTINGS, **changes)
    return retain_adapter(
        models.resolve(str(base)), adapter, split, settings, folder, others=others, cache=folder / "cache"
    )


@pytest.fixture(scope="module")
def made(trained, tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("retained")
    return run(tiny_model_folder, trained, folder), folder


def test_what_is_served_keeps_the_task_and_forgets_less(made, trained, tiny_model_folder):
    record, folder = made
    assert record.decision.choice == "filter"
    assert record.evidence.kappa > 1.2
    point = next(point for point in record.evidence.filter_path if point.strength == record.decision.strength)
    assert point.within
    assert point.rise <= 0.08 * record.evidence.raw_loss
    for one in record.references:
        assert one.rise["filter"].difference < 0.6 * one.rise["raw"].difference
        assert one.kl["filter"] < one.kl["raw"]
    before, after = (load_file(place / forms.WEIGHTS) for place in (trained, folder / "adapter"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) == ("lora_B" in key) for key in before)
    assert not torch.equal(by_peft(tiny_model_folder, folder / "adapter"), by_peft(tiny_model_folder, trained))
    assert torch.equal(by_peft(tiny_model_folder, folder / "adapter-raw"), by_peft(tiny_model_folder, trained))


def test_the_record_is_json_and_its_decision_is_replayed_byte_for_byte(made):
    record, folder = made
    records.write(folder / "retention.json", record)
    again = records.read(Retention, folder / "retention.json")
    assert again == record
    assert records.to_json(decide(again.evidence)) == records.to_json(record.decision)
    assert [file.path for file in again.files] == [
        "adapter/README.md",
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    ]
    assert {one.name: one.gave for one in again.references} == {"prose": True, "code": False}
    assert {layer.name.rpartition(".")[2] for layer in again.layers} == set(MODULES)


def test_the_summary_names_the_choice_and_every_set(made):
    record, _ = made
    line = summary(record)
    assert line.startswith(record.decision.choice)
    for one in record.references:
        assert f"{one.name} {one.rise['raw'].difference:+.3f} -> {one.rise['filter'].difference:+.3f}" in line


def test_what_is_left_out_of_the_tasks_rows_is_said(tiny_model_folder, tmp_path):
    file = tmp_path / "task.jsonl"
    write_task(file)
    file.write_text(file.read_text() + "no json\n" + json.dumps({"prompt": "q" * 9, "completion": "x" * 900}) + "\n")
    found = read_rows(str(file), models.resolve(str(tiny_model_folder)), max_length=60, max_rows=None, seed=0)
    assert any("1 task rows left out: broken JSON" in note for note in found.notes)
    assert any("1 task rows are longer than 60 tokens" in note for note in found.notes)


def test_the_point_of_an_arm_is_that_of_its_strength_also_where_a_later_one_dips_back(made):
    record, _ = made
    path = tuple(
        PathPoint(strength, loss, 0, 0, 0, within)
        for strength, loss, within in ((0.1, 1.0, True), (0.3, 3.0, False), (1.0, 2.0, True))
    )
    told = dataclasses.replace(record, task={}, evidence=dataclasses.replace(record.evidence, filter_path=path))
    assert {arms["filter"][0] for arms in points(told).values()} == {1.0}


def test_too_few_label_tokens_are_said_with_how_many_would_tell(made):
    record, _ = made
    few = TaskRows((), rows(8, seed=1))
    beyond = PathPoint(0.1, 1.0, 0.002, 0.012, 0.01, within=False)

    def notes(*points, **changes):
        return _few_labels(dataclasses.replace(record.evidence, filter_path=points, **changes), few)

    [note] = notes(beyond)
    assert "the 8 rows that chose hold 16 label tokens" in note
    assert "some 36 would tell" in note
    assert "training.validation" in note
    assert not notes(dataclasses.replace(beyond, strength=0.01, standard_error=0.001, within=True), beyond)
    assert not notes(dataclasses.replace(beyond, rise=0.02))
    assert not notes(beyond, references={})
    assert not any("label tokens" in one for one in record.notes)


def test_digests_are_those_of_the_weights_and_layers_are_those_that_are_served(made, trained):
    record, folder = made
    assert record.adapter_digest == records.sha256_file(trained / forms.WEIGHTS)
    assert record.digest == records.sha256_file(folder / "adapter" / forms.WEIGHTS)
    assert all(layer.reference_kept < layer.task_kept < 1 for layer in record.layers)


def test_arms_were_measured_on_rows_that_chose_nothing(made):
    record, _ = made
    assert set(record.task) == {"raw", "filter"}
    assert record.task["raw"].difference == 0
    assert record.task["filter"].rows == 16


def test_tokens_that_went_forward_are_counted_and_each_arm_is_judged_once(made, tiny_model_folder):
    record, _ = made
    give, decide_on, judged, code = 1536, 8 * 128, 6 * 128, 6 * 128
    selection, evaluation = (sum(len(row.input_ids) for row in rows(16, seed=seed)) for seed in (1, 2))
    paths = len(record.evidence.scale_path) + len(record.evidence.filter_path)
    assert record.reference_tokens == give
    assert record.forward_tokens == {
        "moments": record.task_tokens + give,
        "search": (1 + paths) * selection,
        "decide": 4 * decide_on,
        "judge": 3 * (judged + code) + 2 * evaluation,
    }
    assert set(record.evidence.references) == {"prose"}


def test_an_adapter_that_costs_nothing_is_served_as_it_is(tiny_model_folder, tmp_path):
    weak = saved(tiny_model_folder, tmp_path / "weak")
    file = weak / forms.WEIGHTS
    tensors = load_file(file)
    from safetensors.torch import save_file

    save_file({key: value * 1e-3 for key, value in tensors.items()}, file)
    record = run(tiny_model_folder, weak, tmp_path / "out")
    assert (record.decision.choice, record.method) == ("none", "as trained")
    assert (tmp_path / "out/adapter" / forms.WEIGHTS).read_bytes() == file.read_bytes()


def test_of_a_run_what_training_left_is_filtered_and_not_what_was_filtered_before(made, tmp_path):
    _, folder = made
    assert adapter_folder(folder) == folder / "adapter-raw"
    assert adapter_folder(folder / "adapter") == folder / "adapter"
    run_without = tmp_path / "run"
    (run_without / "adapter").mkdir(parents=True)
    (run_without / "adapter" / forms.CONFIG).write_text("{}")
    assert adapter_folder(run_without) == run_without / "adapter"


def test_the_next_training_does_not_undo_this_one_through_moments_alone(made, trained, tiny_model_folder, tmp_path):
    kept = run(tiny_model_folder, trained, tmp_path / "first", keep_moments=True)
    assert kept.moments_file is not None
    again = run(tiny_model_folder, trained, tmp_path / "second", earlier=(tmp_path / "first" / kept.moments_file.path,))
    first = {layer.name: layer.reference_kept for layer in kept.layers}
    assert any(abs(layer.reference_kept - first[layer.name]) > 1e-3 for layer in again.layers)
    assert kept.evidence.earlier is None
    moved = again.evidence.earlier
    assert moved is not None
    assert moved["filter"] < moved["raw"] == 1.0


def test_a_folder_that_does_not_hold_what_was_measured_is_found(trained, tiny_model_folder, tmp_path, monkeypatch):
    write = forms.write

    def torn(form, new, out, *more):
        write(form, {name: forms.Update(2 * one.a, one.b) for name, one in new.items()}, out, *more)

    monkeypatch.setattr(forms, "write", torn)
    with pytest.raises(WorldError, match="does not hold what was measured"):
        run(tiny_model_folder, trained, tmp_path / "out")


def test_the_rows_that_choose_are_those_that_training_kept_and_too_few_are_refused(tmp_path):
    every = rows(60)
    parts = split_rows(every, selection_rows([2] * 60), 0, every[:2])
    given, kept = validation.split(every, 12, 0)
    assert (parts.moments, parts.selection, parts.evaluation) == (given, kept, every[:2])
    assert not {row.row_id for row in given} & {row.row_id for row in kept}
    with pytest.raises(InputError, match="got 7 of 39"):
        split_rows(every[:39], selection_rows([2] * 39), 0)


def test_an_update_of_thrice_its_length_is_made_shorter_and_then_filtered(trained, tiny_model_folder, tmp_path):
    shutil.copytree(trained, tmp_path / "long")
    weights = load_file(trained / "adapter_model.safetensors")
    longer = {name: 3 * value if ".lora_B." in name else value for name, value in weights.items()}
    save_file(longer, tmp_path / "long" / "adapter_model.safetensors", metadata={"format": "pt"})
    record = run(tiny_model_folder, tmp_path / "long", tmp_path / "out")
    found = record.evidence
    least = min(found.scale_path, key=lambda point: point.rise + point.standard_error)
    assert found.shortened == least.strength > 0
    assert record.decision.choice == "filter"
    assert max(layer.task_kept for layer in record.layers) <= 1 / (1 + found.shortened) ** 2


def test_others_are_judged_on_the_same_text_and_stay_off_the_frontier(made, trained, tiny_model_folder, tmp_path):
    first, folder = made
    record = run(tiny_model_folder, trained, tmp_path / "out", others={"champion": folder / "adapter-raw"})
    for one, before in zip(record.references, first.references, strict=True):
        assert one.rise["champion"].difference == pytest.approx(before.rise["raw"].difference, abs=1e-4)
    assert record.decision == first.decision
    drawn = points(record)
    assert set(drawn) == {"prose", "code"}
    assert all(set(arms) == {"raw", "filter"} for arms in drawn.values())
    frontier(record, tmp_path / "frontier.png")
    with pytest.raises(InputError, match="'raw' names an arm"):
        run(tiny_model_folder, trained, tmp_path / "again", others={"raw": trained})


def test_the_config_says_what_the_library_takes():
    given = RetentionConfig().model_dump(exclude=set(LINES_OWN))
    assert RetentionSettings(**given) == RetentionSettings()


def test_the_command_has_the_defaults_of_the_library():
    given = inspect.signature(retain).parameters
    commands = argparse.ArgumentParser().add_subparsers()
    command.add(commands)
    parsed = vars(commands.choices["retain"].parse_args(["a", "--data", "d", "--out", "o"]))
    same = ("tolerance", "quantize", "max_length", "tokens", "prior", "max_error", "keep_moments", "seed")
    assert {name: parsed[name] for name in same} == {name: given[name].default for name in same}


def write_task(file):
    lines = [{"prompt": f"{chr(97 + n % 20)}{n}" * 4, "completion": chr(98 + n % 20) * 5} for n in range(120)]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(file)


def test_the_command_takes_any_peft_folder_and_says_what_it_did(tiny_model_folder, tmp_path, capsys):
    adapter = saved(tiny_model_folder, tmp_path / "elsewhere")
    arguments = [
        "retain",
        str(adapter),
        "--base",
        str(tiny_model_folder),
        "--data",
        write_task(tmp_path / "task.jsonl"),
    ]
    arguments += ["--out", str(tmp_path / "out"), "--reference", "prose", "--tolerance", "20%", "--tokens", "2000"]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    record = records.read(Retention, tmp_path / "out/retention.json")
    assert record.decision.choice in text
    assert "prose" in text
    assert "code" in text
    assert (tmp_path / "out/frontier.png").stat().st_size > 5000
    assert by_peft(tiny_model_folder, tmp_path / "out/adapter").isfinite().all()
    assert main([*arguments, "--json"]) == 2
    assert "not empty" in capsys.readouterr().err
    assert main([*arguments[:-8], "--out", str(tmp_path / "again"), *arguments[-6:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["decision"]["choice"] == record.decision.choice


def test_bad_input_is_refused_with_its_name(tiny_model_folder, tmp_path, capsys):
    adapter = saved(tiny_model_folder, tmp_path / "elsewhere")
    data = write_task(tmp_path / "task.jsonl")
    base = ["--base", str(tiny_model_folder), "--data", data, "--out", str(tmp_path / "out")]
    assert main(["retain", str(adapter), *base, "--reference", data, "--tokens", "2000"]) == 2
    assert "holds" in (error := capsys.readouterr().err)
    assert "task.jsonl" in error
    assert main(["retain", str(adapter), *base, "--tolerance", "none"]) == 2
    assert "tolerance" in capsys.readouterr().err
    edit(adapter, base_model_name_or_path=None)
    assert main(["retain", str(adapter), *base[2:]]) == 2
    assert "--base" in capsys.readouterr().err
    assert main(["retain", str(tmp_path), *base]) == 2
    assert "adapter_config.json" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_parts_are_read_as_rows_are_read_everywhere(tiny_model_folder, tmp_path):
    """A line separator inside a string ends no row; what is not used is counted; what cannot be read is named."""
    base = models.resolve(str(tiny_model_folder))
    odd = {"prompt": "say", "completion": "one\u2028two é"}
    lines = [json.dumps(odd | {"prompt": f"say {n}"}, ensure_ascii=False) for n in range(9)]
    (tmp_path / "a.jsonl").write_text("\n".join([*lines, json.dumps({"prompt": "x" * 90, "completion": "y"})]), "utf-8")
    (tmp_path / "b.jsonl").write_text("\n".join(lines), "utf-8")
    files = (str(tmp_path / "a.jsonl"), str(tmp_path / "b.jsonl"), None)
    found = read_parts(files, base, max_length=60)
    assert (len(found.moments), len(found.selection), len(found.evaluation)) == (9, 9, 0)
    assert any(note.startswith("1 task rows have no label token") for note in found.notes)
    (tmp_path / "b.jsonl").write_text('{"prompt": "a"\n{"prompt": "b", "completion": "c"}\n')
    with pytest.raises(InputError, match=r"b.jsonl, line 1"):
        read_parts(files, base, max_length=60)


def test_a_setting_that_is_none_is_named(tmp_path):
    with pytest.raises(InputError, match="did you mean `judging_units`"):
        retain(tmp_path / "adapter", "rows.jsonl", tmp_path / "out", judging_unit=4)
