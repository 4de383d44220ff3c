"""The TRL script without TRL, which the lock has not: `make peers` and tests/peers/test_peers.py run it with TRL itself."""

import json
import runpy
import sys
import types

import pytest
import torch
import yaml
from recipe_samples import order, write_spectra

from lora_select import models
from lora_select.data.labels.tokenize import tokenize
from lora_select.recipes import emit, trl_command


@pytest.fixture
def stand_in_for_trl(monkeypatch):
    """Only names: nothing of the trainer is used here."""
    module = types.ModuleType("trl")
    module.SFTConfig = module.SFTTrainer = object
    monkeypatch.setitem(sys.modules, "trl", module)


def script(told, tmp_path, monkeypatch):
    spectra = write_spectra(tmp_path / "spectra.safetensors", told.base.path)
    emit(told, ["trl"], spectra, tmp_path)
    monkeypatch.chdir(tmp_path / "trl")
    return runpy.run_path("train.py", run_name="script")


@pytest.mark.parametrize("name", ["lora", "dora", "loraplus", "eva", "vera", "pissa"])
def test_it_builds_the_chosen_adapter_and_says_the_chosen_numbers(
    tiny_model_folder, tmp_path, monkeypatch, stand_in_for_trl, name
):
    told = order(tmp_path / "rows", tiny_model_folder, name)
    made = script(told, tmp_path, monkeypatch)
    model = made["adapted_model"]()
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == told.spec.num_parameters
    arguments, plan = made["ARGUMENTS"], told.plan
    assert arguments["learning_rate"] == told.spec.learning_rate
    assert (
        arguments["per_device_train_batch_size"] * arguments["gradient_accumulation_steps"] == plan.effective_batch_size
    )
    assert (arguments["warmup_steps"], arguments["num_train_epochs"]) == (plan.warmup_steps, plan.epochs)
    assert (arguments["weight_decay"], arguments["max_grad_norm"]) == (plan.weight_decay, plan.max_grad_norm)
    assert "loraplus_lr_ratio=16.0" in (tmp_path / "trl" / "train.py").read_text() or name != "loraplus"
    if name == "eva":
        a = next(p for n, p in model.named_parameters() if "lora_A" in n)
        torch.testing.assert_close(a @ a.T, torch.eye(8), rtol=1e-4, atol=1e-4)


def test_the_adapter_s_start_is_that_of_the_seed_in_every_process(
    tiny_model_folder, tmp_path, monkeypatch, stand_in_for_trl
):
    made = script(order(tmp_path / "rows", tiny_model_folder), tmp_path, monkeypatch)
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        starts.append({name: value for name, value in made["adapted_model"]().state_dict().items() if "lora_A" in name})
    assert starts[0]
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())


def test_its_rows_are_the_measured_tokens_cut_where_the_measurement_cut(
    tiny_model_folder, tmp_path, monkeypatch, stand_in_for_trl
):
    from lora_select.data.intake import read_canonical

    told = order(tmp_path / "rows", tiny_model_folder, max_length=60)
    made = script(told, tmp_path, monkeypatch)
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    written = made["rows"]("train.jsonl", tokenizer)
    canonical = list(read_canonical(tmp_path / "rows" / "train.parquet"))
    assert len(written) == len(canonical)
    cut = 0
    for row, (row_id, content) in zip(written, canonical, strict=True):
        measured = tokenize(row_id, content, tokenizer, 60)
        cut += measured.length > 60
        if measured.row is None:  # nothing learnt is left of it
            assert set(row["labels"]) == {-100}
            continue
        ids, mask = measured.row.input_ids, measured.row.label_mask
        labels = [token if learnt else -100 for token, learnt in zip(ids, mask, strict=True)]
        size = len(row["input_ids"])
        assert row["input_ids"] == list(ids[:size])
        assert row["labels"] == labels[:size]
        assert not any(mask[size:])
    assert 0 < cut < len(canonical)
    assert json.loads((tmp_path / "trl" / "train.jsonl").read_text().splitlines()[0])[0]["learn"] is False


def test_several_processes_share_out_the_rows_of_a_step(tiny_model_folder, tmp_path, monkeypatch, stand_in_for_trl):
    """Eight rows a step, four at a time: the same rows a step on 2, 4 and 8 processes, and no step on 3."""
    told = order(tmp_path / "rows", tiny_model_folder)
    shared_out = script(told, tmp_path, monkeypatch)["shared_out"]
    for processes, micro, accumulation in ((1, 4, 2), (2, 4, 1), (4, 2, 1), (8, 1, 1)):
        made = shared_out(processes)
        assert (made["per_device_train_batch_size"], made["gradient_accumulation_steps"]) == (micro, accumulation)
        assert made["learning_rate"] == told.spec.learning_rate
    with pytest.raises(SystemExit, match="8 rows cannot be shared out over 3"):
        shared_out(3)


def test_the_command_s_config_and_tokens_say_what_the_script_says(
    tiny_model_folder, tmp_path, monkeypatch, stand_in_for_trl
):
    told = order(tmp_path / "rows", tiny_model_folder, "dora", max_length=60)
    made = script(told, tmp_path, monkeypatch)
    config = yaml.safe_load((tmp_path / "trl" / "sft.yaml").read_text())
    assert made["ARGUMENTS"].items() <= config.items()
    assert (config["use_dora"], config["use_rslora"]) == (True, False)
    assert (config["lora_r"], config["lora_alpha"]) == (told.spec.r, told.spec.lora_alpha)
    assert config["lora_target_modules"] == list(told.spec.target_modules)
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    for file, mine in (("train.jsonl", "train.jsonl"), ("eval.jsonl", "test.jsonl")):
        written = [json.loads(line) for line in (tmp_path / "trl" / "tokens" / mine).read_text().splitlines()]
        scripts = list(made["rows"](file, tokenizer))
        assert [row["input_ids"] for row in written] == [row["input_ids"] for row in scripts]
        assert [row["labels"][1:] for row in written] == [row["labels"][1:] for row in scripts]


def test_a_single_layer_name_reaches_peft_as_a_pattern_that_finds_it(tiny_model_folder, tmp_path):
    import dataclasses
    import re

    told = order(tmp_path / "rows", tiny_model_folder)
    one = dataclasses.replace(told.spec, target_modules=("q_proj",), peft_arguments={"target_modules": ["q_proj"]})
    config = trl_command.config(dataclasses.replace(told, spec=one), {}, "float32")
    (pattern,) = config["lora_target_modules"]
    assert re.fullmatch(pattern, "model.layers.0.self_attn.q_proj")
    assert not re.fullmatch(pattern, "model.layers.0.self_attn.k_proj")


@pytest.mark.parametrize("name", ["eva", "loraplus", "vera", "pissa"])
def test_what_the_command_cannot_be_told_leaves_no_config_of_an_earlier_choice(tiny_model_folder, tmp_path, name):
    spectra = write_spectra(tmp_path / "spectra.safetensors", tiny_model_folder)
    emit(order(tmp_path / "rows", tiny_model_folder), ["trl"], spectra, tmp_path)
    assert (tmp_path / "trl" / "sft.yaml").is_file()
    (emitted,) = emit(order(tmp_path / "others", tiny_model_folder, name), ["trl"], spectra, tmp_path)
    assert not (tmp_path / "trl" / "sft.yaml").exists()
    assert not (tmp_path / "trl" / "tokens").exists()
    assert any(note.startswith("no sft.yaml: ") for note in emitted.written.notes)


def test_accelerate_reads_its_file(tiny_model_folder, tmp_path):
    from accelerate.commands.config.config_args import load_config_from_file

    emit(order(tmp_path / "rows", tiny_model_folder), ["trl"], tmp_path / "none", tmp_path)
    found = load_config_from_file(str(tmp_path / "trl" / "accelerate.yaml"))
    assert (str(found.distributed_type.value), found.num_processes, found.use_cpu) == ("MULTI_GPU", 2, False)
    assert found.mixed_precision == "no"
