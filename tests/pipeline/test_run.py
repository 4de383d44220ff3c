"""What is refused when a run is opened, what names it, and which machine it means."""

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lora_select.api import in_memory
from lora_select.audit import run_entries
from lora_select.audit.books.ledger import in_folder
from lora_select.config import words
from lora_select.data.reading.source_files import source_digest
from lora_select.errors import InputError, WorldError
from lora_select.pipeline import line, run
from lora_select.pipeline.stage import Observer


@pytest.fixture
def rows(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"say {n}", "completion": f"{n}"}) + "\n" for n in range(40)))
    return file


@pytest.fixture
def made(tmp_path, tiny_model_folder, rows, monkeypatch):
    """A config on the tiny model; keywords change it."""
    monkeypatch.setenv("LORA_SELECT_CACHE", str(tmp_path / "cache"))

    def make(dataset=rows, **changes):
        plain = {"runs_dir": str(tmp_path / "runs"), "tracking_uri": None}
        return words.of(str(tiny_model_folder), str(dataset), plain | changes)

    return make


def key(asked):
    with run.opened(asked) as opened:
        return opened.key


def test_what_is_written_beside_the_line_does_not_name_the_run_and_what_changes_it_does(made, rows):
    assert key(made()) == key(made(trainers=["trl"], curvature=True, experiment="other"))
    assert key(made()) != key(made(epochs=2))
    first = key(made())
    rows.write_text(rows.read_text() + '{"prompt": "one", "completion": "more"}\n')
    assert key(made()) != first


@pytest.mark.parametrize(
    ("role", "changes"),
    [
        ("benchmarks.0", {"benchmarks": ["NAMED"]}),
        ("references.1", {"references": ("prose", "NAMED")}),
        ("judges.0", {"judges": ("NAMED",)}),
        ("tasks", {"tasks": ("mine",), "task_folder": "FOLDER"}),
        ("metrics", {"metrics": {"mine": {"json_schema": "NAMED"}}}),
    ],
)
def test_the_bytes_behind_whatever_the_config_names_are_in_the_key(made, tmp_path, role, changes):
    file = tmp_path / "named" / "file.json"
    file.parent.mkdir()
    file.write_text('{"type": "object"}')
    asked = made(**json.loads(json.dumps(changes).replace("NAMED", str(file)).replace("FOLDER", str(file.parent))))
    with run.opened(asked) as before:
        pass
    file.write_text('{"type": "array"}')
    with run.opened(asked) as after:
        pass
    assert {name for name in before.sources if before.sources[name] != after.sources[name]} == {role}
    assert before.key != after.key


def test_a_file_that_is_changed_while_the_run_lasts_is_entered_as_it_was_read(made, rows):
    with run.opened(made()) as opened:
        rows.write_text('{"prompt": "one", "completion": "other"}\n')
    [entry] = in_folder(opened.place.root).of(run=opened.key)
    assert entry.digests["source.train"] == opened.sources["train"] != source_digest(str(rows))


def test_a_run_is_finished_once_it_is_entered(made, monkeypatch):
    told = []

    class Heard(Observer):
        def ended(self, folder, status):
            told.append((status, len(in_folder(folder.parent).of(run=folder.name))))

    with run.opened(made(), observers=[Heard()]):
        pass
    monkeypatch.setattr(run_entries, "closed", _full)
    with pytest.raises(WorldError, match="disk full"), run.opened(made(), observers=[Heard()]):
        pass
    assert told == [("FINISHED", 1), ("FAILED", 1)]


def _full(*_, **__):
    raise WorldError("disk full")


def test_no_tracking_leaves_no_trace(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run.opened(made()) as opened:
        assert opened.place.tracker is None
    assert not (opened.folder / "tracking.json").exists()
    assert not (tmp_path / "mlflow.db").exists()
    assert json.loads((opened.folder / "config.json").read_text())["name"] == "rows"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "none.jsonl"}, "none.jsonl does not exist"),
        ({"variant": "mica", "quantize": "nf4"}, "measured: mica does not train on a nf4 base"),
        ({"tracking_uri": "file:mlruns"}, "no longer supports"),
        ({"runs_dir": "/proc/none"}, "cannot be made"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_looked_at(made, changes, words):
    with pytest.raises(InputError, match=words), run.opened(made(**changes)):
        pytest.fail("the run was opened")


@pytest.mark.parametrize(("form", "module"), [("nf4", "bitsandbytes"), ("q4_0", "gguf")])
def test_a_form_of_fewer_bits_needs_its_library_before_the_model_is_looked_at(made, monkeypatch, form, module):
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == module else found(name, *more))
    monkeypatch.setattr(run.models, "resolve", lambda *_: pytest.fail("the model was looked at"))
    with (
        pytest.raises(InputError, match=rf"{form} needs {module}: pip install 'lora-select\[quant\]'"),
        run.opened(made(quantized=[form])),
    ):
        pytest.fail("the run was opened")


def test_what_no_gguf_is_known_to_store_is_refused_when_the_run_is_opened(made, monkeypatch):
    config, other = made(quantized=["q4_0"]), made(quantized=["nf4"])
    base = run.models.resolve(config.base_model.source)
    monkeypatch.setattr(run.models, "resolve", lambda *_: replace(base, architecture="GPT2LMHeadModel"))
    with pytest.raises(InputError, match="q4_0: which weights of GPT2LMHeadModel"), run.opened(config):
        pytest.fail("the run was opened")
    with run.opened(other):
        pass


def test_a_gpu_elsewhere_trains_there_and_measures_here(made, monkeypatch):
    monkeypatch.setattr(run, "has_gpu", lambda: False)
    with run.opened(made(device="cuda", memory="24GiB")) as opened:
        assert (opened.trainer.device, opened.trainer.memory_gib) == ("cuda", 24.0)
        assert opened.measuring.device == "cpu"
        with pytest.raises(InputError, match=r"training.device"):
            opened.machine  # noqa: B018  (a property)
    with run.opened(made(device="cuda")) as opened, pytest.raises(InputError, match=r"training.memory=24GiB"):
        opened.trainer  # noqa: B018
    with run.opened(made(memory="1GiB")) as opened:
        assert opened.trainer.memory_gib == 1.0
        assert opened.machine.memory_gib != 1.0
        profiled = SimpleNamespace(measured=SimpleNamespace(profile=SimpleNamespace(ref=None)))
        assert line._planning(opened, cast("Any", profiled))["machine"].memory_gib == 1.0


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (iter([]), "spent"),
        ([], "no row"),
        (["text"], "row 1 of `dataset` is a str"),
        ([{"prompt": "a", "completion": {1, 2}}], "row 1 of `dataset` holds"),
        ([{"prompt": "a", "completion": float("nan")}], "row 1 of `dataset` holds"),
        ({"train": [], "test": []}, "one split"),
        (7, "is a int"),
    ],
)
def test_rows_that_are_none_are_refused(tmp_path, dataset, words):
    with pytest.raises(InputError, match=words):
        in_memory.dataset_source(dataset, tmp_path)


def test_rows_in_memory_become_one_file_named_by_its_bytes(tmp_path):
    rows = [{"prompt": "ä", "completion": "b"}]
    first = in_memory.dataset_source(rows, tmp_path)
    assert in_memory.dataset_source(iter(rows), tmp_path) == first
    assert in_memory.dataset_source([*rows, *rows], tmp_path) != first
    assert [json.loads(line) for line in open(first, encoding="utf-8")] == rows  # noqa: SIM115


def test_a_datasets_dataset_becomes_parquet_without_filled_nulls_of_its_own(tmp_path):
    import datasets

    made = datasets.Dataset.from_list([{"prompt": "a", "completion": "b"}] * 3)
    first = in_memory.dataset_source(made, tmp_path)
    assert first.endswith(".parquet")
    assert in_memory.dataset_source(made.select(range(3)), tmp_path) == first
    with pytest.raises(InputError, match="no row"):
        in_memory.dataset_source(made.select([]), tmp_path)
    with pytest.raises(InputError, match=r"dataset\['train'\]"):
        in_memory.dataset_source(datasets.DatasetDict(train=made), tmp_path)


@pytest.fixture
def loaded(tiny_model_folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(tiny_model_folder)


def test_a_loaded_model_is_its_folder(loaded, tiny_model_folder, tmp_path, monkeypatch):
    from transformers import AutoTokenizer

    monkeypatch.setenv("LORA_SELECT_CACHE", str(tmp_path))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_folder)
    assert in_memory.model_source(loaded, tokenizer) == str(tiny_model_folder)
    assert in_memory.model_source(loaded.bfloat16()) == str(tiny_model_folder)
    tokenizer.chat_template = "other"
    with pytest.raises(InputError, match="another chat template"):
        in_memory.model_source(loaded, tokenizer)
    with pytest.raises(InputError, match="loaded model"):
        in_memory.model_source(str(tiny_model_folder), tokenizer)


def test_a_loaded_model_that_is_not_its_folder_s_is_refused(loaded, tmp_path, monkeypatch):
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    monkeypatch.setenv("LORA_SELECT_CACHE", str(tmp_path))
    with torch.no_grad():
        loaded.model.layers[1].mlp.up_proj.weight.mul_(1.01)
    with pytest.raises(InputError, match="up_proj.weight differs"):
        in_memory.model_source(loaded)
    with pytest.raises(InputError, match="came from no folder"):
        in_memory.model_source(AutoModelForCausalLM.from_config(loaded.config.__class__(**_small(loaded.config))))
    with pytest.raises(InputError, match="before an adapter is put on it"):
        in_memory.model_source(peft.get_peft_model(loaded, peft.LoraConfig(target_modules=["q_proj"])))
    with pytest.raises(InputError, match="is a int"):
        in_memory.model_source(7)


def _small(plain):
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    return {name: getattr(plain, name) for name in names}


def test_importing_the_package_costs_nothing():
    code = (
        "import sys, time; t = time.process_time(); import lora_select; spent = time.process_time() - t; "
        "print([n for n in ('torch', 'pydantic', 'yaml', 'transformers') if n in sys.modules], spent < 0.2, "
        "sorted(set(lora_select.__all__) - set(dir(lora_select))))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "True", "[]"]
