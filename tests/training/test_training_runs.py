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
from lora_select.errors import WorldError
from lora_select.training import checkpoints, launch, prove
from lora_select.training.job import LAUNCH, METRICS
from lora_select.training.prove_worker import examine


def train(folder, model, **changes):
    return launch.train(job(folder, model, **changes), folder)


def losses(folder):
    return [step["loss"] for step in launch.read_metrics(folder)]


def processes(folder):
    noted = json.loads((folder / LAUNCH).read_text())
    return [psutil.Process(pid) for pid, _ in noted["processes"] if psutil.pid_exists(pid)]


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, tiny_model_folder):
    """An uninterrupted run of two ranks."""
    folder = tmp_path_factory.mktemp("reference")
    return folder, train(folder, tiny_model_folder)


def test_two_ranks_train_and_the_proof_holds(reference, tiny_model_folder, tmp_path):
    folder, adapter = reference
    assert adapter.steps == 60 == len(losses(folder))
    assert adapter.num_processes == 2
    assert sum(step["tokens"] for step in launch.read_metrics(folder)) == adapter.tokens
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


def test_killed_ranks_are_an_error_and_the_next_start_resumes_exactly(reference, tiny_model_folder, tmp_path):
    """A rank gets SIGKILL between two checkpoints; nothing of the run stays alive, and the second start ends equal."""
    told = job(tmp_path, tiny_model_folder)

    def kill_a_rank():
        wait_until(lambda: len(losses(tmp_path)) >= 8)
        workers = [p for p in processes(tmp_path) if "lora_select.training.worker" in " ".join(p.cmdline())]
        os.kill(max(p.pid for p in workers), signal.SIGKILL)

    killer = threading.Thread(target=kill_a_rank)
    killer.start()
    with pytest.raises(WorldError, match="the same command resumes"):
        launch.train(told, tmp_path)
    killer.join()
    assert not [p for p in processes(tmp_path) if p.status() != psutil.STATUS_ZOMBIE]
    adapter = launch.train(told, tmp_path)
    expected_folder, expected = reference
    torch.testing.assert_close(losses(tmp_path), losses(expected_folder), rtol=1e-6, atol=1e-6)
    assert [step["step"] for step in launch.read_metrics(tmp_path)] == list(range(1, 61))
    assert_same_adapter(tmp_path, expected_folder)
    assert adapter.steps == expected.steps
    assert adapter.resumed_from[0] >= 5


def assert_same_adapter(one, other):
    first, second = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (one, other))
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=1e-4, atol=1e-5)


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
        (folder / "state.pt").write_bytes(b"state")
        checkpoints._seal(folder, step, 2)
    assert checkpoints.newest(tmp_path, 2) == (4, [])
    (tmp_path / checkpoints.name(4) / "state.pt").write_bytes(b"sta")
    step, faults = checkpoints.newest(tmp_path, 2)
    assert step == 2
    assert "state.pt is missing or was changed" in faults[0]
    assert checkpoints.newest(tmp_path, 3)[0] == 0
    (tmp_path / checkpoints.name(2) / checkpoints.MANIFEST).unlink()
    assert checkpoints.newest(tmp_path, 2)[0] == 0


def test_secrets_do_not_reach_the_ranks(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "x")
    monkeypatch.setenv("HF_TOKEN", "x")
    monkeypatch.setenv("HARMLESS", "x")
    left = launch.clean_environment()
    assert "HARMLESS" in left
    assert not {"MLFLOW_TRACKING_URI", "HF_TOKEN"} & left.keys()


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"num_processes": 1, "micro_batch_size": 8},
        {"num_processes": 1, "micro_batch_size": 2, "gradient_accumulation_steps": 4},
        {"zero_stage": 1},
        {"zero_stage": 2},
        {"zero_stage": 3},
    ],
    ids=str,
)
def test_ranks_stages_and_accumulation_agree(reference, tiny_model_folder, tmp_path, changes):
    train(tmp_path, tiny_model_folder, **changes)
    torch.testing.assert_close(losses(tmp_path), losses(reference[0]), rtol=1e-5, atol=1e-5)
    assert_same_adapter(tmp_path, reference[0])


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["supervisor", "flow"])
def test_no_orphans(tiny_model_folder, tmp_path, victim):
    """SIGKILL of the supervisor, or of the process that started it, ends torchrun and every rank."""
    import subprocess
    import sys

    job(tmp_path, tiny_model_folder, count=4000, total_steps=100000, epochs=500.0)
    script = (
        "import sys; sys.path.insert(0, 'tests'); from pathlib import Path; from training_jobs import job;"
        "from lora_select.training import launch; f = Path(sys.argv[1]);"
        "launch.train(job(f, Path(sys.argv[2]), count=4000, total_steps=100000, epochs=500.0), f)"
    )
    flow = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(tiny_model_folder)])
    wait_until(lambda: len(launch.read_metrics(tmp_path)) >= 3, 120)
    noted = json.loads((tmp_path / LAUNCH).read_text())
    known = [noted["supervisor"], *noted["processes"]]
    assert len(known) >= 4
    os.kill(noted["supervisor"][0] if victim == "supervisor" else flow.pid, signal.SIGKILL)
    flow.wait(60)
    wait_until(lambda: not any(launch.watch.alive(tuple(who)) for who in known), 60)
    assert (tmp_path / METRICS).is_file()
