"""What of validation and retention travels: the rows that are kept, how often they are looked at, and the filter after the training."""

import ast
import dataclasses
import json
import subprocess
import sys

import pytest
import yaml
from moved_adapters import moved
from recipe_samples import KEPT, keeping, order

from lora_select import records
from lora_select.config.sections import RetentionConfig
from lora_select.recipes import TOOLS, emit
from lora_select.recipes.afterwards import settings_after
from lora_select.records import Retention
from lora_select.retention.settings import RetentionSettings

LOOKS = {"eval_steps": 5, "save_steps": 5, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss"}


@pytest.fixture
def told(tiny_model_folder, tmp_path):
    settings = RetentionSettings(judging_units=4, task_tokens=512, reference_tokens=640, tolerance="2%")
    return dataclasses.replace(keeping(tmp_path / "rows", tiny_model_folder), retention=settings)


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_kept_rows_are_not_among_those_that_are_trained_on(told, tmp_path):
    emit(told, list(TOOLS), tmp_path / "none", tmp_path)
    for tool in TOOLS:
        parts = [lines(tmp_path / tool / f"{name}.jsonl") for name in ("train", "validation", "eval")]
        assert len(parts[1]) >= KEPT
        shown = [{json.dumps(row) for row in part} for part in parts]
        assert not shown[0] & shown[1]
        task = [lines(tmp_path / tool / "task" / f"{name}.jsonl") for name in ("train", "validation", "eval")]
        assert len(task[1]) == KEPT
        assert not {json.dumps(row) for row in task[0]} & {json.dumps(row) for row in task[1]}


def test_every_tool_looks_at_the_kept_rows_as_often_as_planned_and_takes_the_best(told, tmp_path):
    emit(told, ["trl", "llamafactory", "axolotl", "ms-swift", "unsloth", "peft"], tmp_path / "none", tmp_path)
    found = {
        name: yaml.safe_load((tmp_path / name / "train.yaml").read_text())
        for name in ("llamafactory", "axolotl", "ms-swift")
    }
    found["sft"] = yaml.safe_load((tmp_path / "trl" / "sft.yaml").read_text())
    for name in ("trl", "unsloth"):
        script = (tmp_path / name / "train.py").read_text()
        assert 'rows("validation.jsonl", tokenizer)' in script
        assert "EarlyStoppingCallback(2)" in script
        found[name] = _assigned(script, "ARGUMENTS")
    for name, values in found.items():
        assert LOOKS.items() <= values.items(), name
    assert found["llamafactory"]["eval_dataset"] == "validation"
    assert found["llamafactory"]["early_stopping_steps"] == 2
    assert "validation" in json.loads((tmp_path / "llamafactory" / "dataset_info.json").read_text())
    assert found["axolotl"]["test_datasets"][0]["path"] == "validation.jsonl"
    assert found["axolotl"]["early_stopping_patience"] == 2
    assert "evals_per_epoch" not in found["axolotl"]
    assert found["ms-swift"]["val_dataset"] == ["validation.jsonl"]
    assert found["ms-swift"]["early_stop_interval"] == 2
    training = json.loads((tmp_path / "peft" / "training.json").read_text())
    assert (training["validation_every"], training["patience"]) == (5, 2)
    assert len(lines(tmp_path / "trl" / "tokens" / "test.jsonl")) == len(told.rows.validation)


def _assigned(script, name):
    for node in ast.parse(script).body:
        if isinstance(node, ast.Assign) and node.targets[0].id == name:  # pyright: ignore[reportAttributeAccessIssue]
            return ast.literal_eval(node.value)
    raise AssertionError(name)


def test_what_another_choice_keeps_not_leaves_no_rows_of_it(told, tiny_model_folder, tmp_path):
    emit(told, ["trl"], tmp_path / "none", tmp_path)
    assert (tmp_path / "trl" / "retain.py").is_file()
    (made,) = emit(order(tmp_path / "others", tiny_model_folder), ["trl"], tmp_path / "none", tmp_path)
    left = {item.name for item in (tmp_path / "trl").iterdir()}
    assert not left & {"validation.jsonl", "retain.py", "task"}
    assert not any("retain.py" in note for note in made.written.notes)


def test_the_filter_s_settings_are_the_run_s_and_off_is_off(told):
    config = RetentionConfig(tolerance="3%", judging_units=4).model_dump()
    found = settings_after(config, told.plan, [], "nf4")
    assert found is not None
    assert (found.tolerance, found.judging_units, found.quantize, found.seed) == ("3%", 4, "nf4", told.plan.seed)
    assert settings_after(RetentionConfig(mode="off").model_dump(), told.plan, [], None) is None


@pytest.mark.slow
def test_retain_py_filters_an_adapter_with_the_emitted_rows_and_settings(told, tmp_path):
    """In a folder that was moved, by a process of its own."""
    emit(told, ["peft"], tmp_path / "none", tmp_path)
    folder = (tmp_path / "peft").rename(tmp_path / "elsewhere")
    moved(told.base.path).save_pretrained(folder / "trained")
    done = subprocess.run([sys.executable, "retain.py", "trained"], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    made = records.read(Retention, folder / "kept" / "retention.json")
    assert made.evidence.selection_rows == len(told.rows.validation)
    assert made.evidence.tolerance.share == 0.02
    assert (folder / "kept" / "adapter" / "adapter_config.json").is_file()
    again = subprocess.run([sys.executable, "retain.py", "trained"], cwd=folder, capture_output=True, text=True)
    assert again.returncode == 1
    assert "Traceback" not in again.stderr
