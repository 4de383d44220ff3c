"""Real DeepSpeed ranks over gloo leave no process, and what they save is what they trained; kills are in tests/faults."""

import dataclasses
import json
import shutil
import sys

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_jobs import job, spec

from lora_select import models, records
from lora_select.records import Adapter
from lora_select.training import reload_check
from lora_select.training.job import LAUNCH, RESULT, write_job
from lora_select.training.reload_check import examine
from lora_select.training.supervisor import launch, metrics_file
from lora_select.training.worker import checkpoints, main


def train(folder, model, **changes):
    return launch.train(job(folder, model, **changes), folder)


def losses(folder):
    return [step["loss"] for step in metrics_file.read_metrics(folder)]


def processes(folder):
    noted = json.loads((folder / LAUNCH).read_text())
    return [psutil.Process(pid) for pid, _ in noted["processes"] if psutil.pid_exists(pid)]


def test_two_ranks_train_and_the_proof_holds(reference, tiny_model_folder, tmp_path):
    folder, adapter = reference
    assert adapter.steps == 60 == len(losses(folder))
    assert adapter.num_processes == 2
    assert sum(step["tokens"] for step in metrics_file.read_metrics(folder)) == adapter.tokens
    base = models.resolve(str(tiny_model_folder), cache=tmp_path / "cache")
    proof = reload_check.check_reload(base, folder, precision="fp32", folder=tmp_path)
    assert proof.passed
    assert proof.max_logit_difference < 1e-5
    assert proof.function_change > 0.01
    assert not any(process.is_running() for process in processes(folder))


def test_a_finished_run_is_not_done_again(reference, tiny_model_folder):
    folder, adapter = reference
    before = (folder / "result.json").stat().st_mtime_ns
    assert train(folder, tiny_model_folder) == adapter
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_packed_ranks_train_the_same_adapter(reference, runs):
    adapter = records.read(Adapter, runs["packed"] / RESULT)
    torch.testing.assert_close(losses(runs["packed"]), losses(reference[0]), rtol=1e-4, atol=1e-4)
    assert (adapter.tokens, adapter.label_tokens) == (reference[1].tokens, reference[1].label_tokens)


@pytest.mark.parametrize("harm", ["zero B", "NaN", "changed", "no tensors"])
def test_proof_catches(reference, tiny_model_folder, tmp_path, harm):
    folder = shutil.copytree(reference[0], tmp_path / "copy")
    file = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(file)
    for name in tensors:
        if harm == "zero B" and "lora_B" in name:
            tensors[name].zero_()
        elif harm == "NaN":
            tensors[name][0, 0] = torch.nan
        elif harm == "changed":
            tensors[name] *= 1.1
    save_file({} if harm == "no tensors" else tensors, file, metadata={"format": "pt"})
    proof = examine(str(tiny_model_folder), folder, "fp32")
    assert not proof.passed
    words = {"zero B": "B is zero", "NaN": "NaN or infinity", "changed": "logits differ", "no tensors": "no tensor"}
    assert any(words[harm] in fault for fault in proof.faults), proof.faults
    assert any("was changed after training" in fault for fault in proof.faults)


def test_a_start_that_changes_the_base_is_exported_exactly(runs, tiny_model_folder):
    """PiSSA-like factors: trained on W - s B0 A0, saved as rank 2r, equal to the trained model on the pristine base."""
    folder = runs["moved base"]
    assert records.read(Adapter, folder / RESULT).export == "2r conversion"
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == 2 * spec().r
    proof = examine(str(tiny_model_folder), folder, "fp32")
    assert proof.passed, proof.faults
    assert proof.max_logit_difference < 1e-4


def test_a_torn_checkpoint_is_not_used(tmp_path):
    for step in (2, 4):
        folder = tmp_path / checkpoints.name(step)
        folder.mkdir()
        (folder / "state.safetensors").write_bytes(b"state")
        checkpoints._seal(folder, step)
    assert checkpoints.newest(tmp_path) == (4, [])
    (tmp_path / checkpoints.name(4) / "state.safetensors").write_bytes(b"sta")
    step, faults = checkpoints.newest(tmp_path)
    assert step == 2
    assert "state.safetensors is missing or was changed" in faults[0]
    assert checkpoints.keep_newest(tmp_path) == 2
    assert checkpoints.found(tmp_path) == [2]
    (tmp_path / checkpoints.name(2) / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path)[0] == 0


def test_secrets_do_not_reach_the_ranks(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("HARMLESS", "x")
    left = launch.clean_environment()
    assert "HARMLESS" in left
    assert not {"MLFLOW_TRACKING_URI", "HF_TOKEN"} & left.keys()


@pytest.mark.parametrize(("quantized", "left_out"), [(None, {"mlflow", "bitsandbytes"}), ("nf4", {"mlflow"})])
def test_a_rank_does_not_import_what_it_never_uses(tmp_path, monkeypatch, quantized, left_out):
    """DeepSpeed and PEFT would import these: seconds at every start."""
    told = dataclasses.replace(job(tmp_path, tmp_path), quantized_base=quantized)
    for name in ("mlflow", "bitsandbytes"):
        monkeypatch.setitem(sys.modules, name, torch)  # put back what was there
        del sys.modules[name]
    monkeypatch.setenv("RANK", "0")
    seen = {}
    main.as_rank(lambda *_: seen.update(sys.modules), write_job(tmp_path, told))
    assert {name for name, module in seen.items() if module is None} == left_out
