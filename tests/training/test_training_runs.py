"""Real DeepSpeed ranks over gloo: they agree, survive kills without orphans, and what they save is what they trained."""

import json
import os
import shutil
import signal
import threading
import time

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from training_jobs import MODULES, job, spec

from lora_select import models
from lora_select.training import beat as heartbeats
from lora_select.training import checkpoints, launch, prove, show
from lora_select.training.job import LAUNCH
from lora_select.training.prove_worker import examine


def train(folder, model, **changes):
    return launch.train(job(folder, model, **changes), folder)


def losses(folder):
    return [step["loss"] for step in show.read_metrics(folder)]


def processes(folder):
    noted = json.loads((folder / LAUNCH).read_text())
    return [psutil.Process(pid) for pid, _ in noted["processes"] if psutil.pid_exists(pid)]


def ranks(folder):
    """Process ids of the ranks, by rank."""
    return [beat["pid"] for beat in heartbeats.read(folder)]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def test_two_ranks_train_and_the_proof_holds(reference, tiny_model_folder, tmp_path):
    folder, adapter = reference
    assert adapter.steps == 60 == len(losses(folder))
    assert adapter.num_processes == 2
    assert sum(step["tokens"] for step in show.read_metrics(folder)) == adapter.tokens
    base = models.resolve(str(tiny_model_folder), cache=tmp_path / "cache")
    proof = prove.prove(base, folder, precision="fp32", folder=tmp_path)
    assert proof.passed
    assert proof.max_logit_difference < 1e-5
    assert proof.function_change > 0.01
    assert not any(process.is_running() for process in processes(folder))


def test_a_finished_run_is_not_done_again(reference, tiny_model_folder):
    folder, adapter = reference
    before = (folder / "result.json").stat().st_mtime_ns
    assert train(folder, tiny_model_folder) == adapter
    assert (folder / "result.json").stat().st_mtime_ns == before


def test_a_killed_rank_is_remedied_and_the_result_is_that_of_an_uninterrupted_run(
    reference, tiny_model_folder, tmp_path
):
    """A rank gets SIGKILL between two checkpoints: the call restarts the ranks there, says so, and ends equal."""
    told = job(tmp_path, tiny_model_folder)
    killed = []

    def kill_a_rank():
        wait_until(lambda: len(losses(tmp_path)) >= 8)
        killed.extend(processes(tmp_path))
        os.kill(ranks(tmp_path)[1], signal.SIGKILL)

    killer = threading.Thread(target=kill_a_rank)
    killer.start()
    adapter = launch.train(told, tmp_path)
    killer.join()
    assert not [p for p in killed + processes(tmp_path) if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
    expected_folder, expected = reference
    torch.testing.assert_close(losses(tmp_path), losses(expected_folder), rtol=1e-6, atol=1e-6)
    assert [step["step"] for step in show.read_metrics(tmp_path)] == list(range(1, 61))
    assert_same_adapter(tmp_path, expected_folder)
    assert (adapter.steps, adapter.tokens) == (expected.steps, expected.tokens)
    assert adapter.resumed_from[0] >= 5
    (remedy,) = adapter.remedies
    assert remedy.failure == "rank lost"
    assert "signal 9" in remedy.message
    assert not remedy.after


def assert_same_adapter(one, other):
    first, second = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


def test_packed_ranks_train_the_same_adapter(reference, tiny_model_folder, tmp_path):
    adapter = train(tmp_path, tiny_model_folder, packing=True)
    torch.testing.assert_close(losses(tmp_path), losses(reference[0]), rtol=1e-4, atol=1e-4)
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


def test_a_start_that_changes_the_base_is_exported_exactly(tiny_model_folder, tmp_path):
    """PiSSA-like factors: trained on W - s B0 A0, saved as rank 2r, equal to the trained model on the pristine base."""
    model = models.load_model(str(tiny_model_folder))
    factors = {}
    for name, layer in model.named_modules():
        if name.endswith(MODULES):
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            factors[f"{name}.lora_A"] = (s[:4].sqrt()[:, None] * v[:4]).contiguous() / 2**0.5
            factors[f"{name}.lora_B"] = (u[:, :4] * s[:4].sqrt()).contiguous() / 2**0.5
    save_file(factors, tmp_path / "init.safetensors", metadata={"subtract_from_base": "true"})
    folder = tmp_path / "run"
    changes = {"initial_factors": tmp_path / "init.safetensors", "num_processes": 1, "micro_batch_size": 8}
    adapter = train(folder, tiny_model_folder, learning_rate=1e-3, **changes)
    assert adapter.export == "2r conversion"
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
