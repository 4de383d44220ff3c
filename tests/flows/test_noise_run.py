"""`lora-select noise` on a tiny model: two more trainings, their spread, and a gate that takes it."""

import json

import pytest
import tiny_run

from lora_select import records
from lora_select.audit.verification import verify
from lora_select.cli.main import main
from lora_select.pipeline.history import replay
from lora_select.tracking.store import prepare

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]


def test_seeds_are_trained_measured_and_asked_for(tmp_path, tiny_model_folder, monkeypatch, capsys):
    monkeypatch.setenv("LORA_SELECT_CACHE", str(tmp_path / "cache"))
    config = str(tiny_run.written(tmp_path, tiny_model_folder, training={"num_processes": 1}))
    assert main(["finetune", config]) == 0
    run = (tmp_path / "runs" / "latest").resolve()
    stamp = (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main(["noise", str(run), "--seeds", "3"]) == 0
    said = capsys.readouterr().out
    assert (run / "adapter" / "adapter_model.safetensors").stat().st_mtime_ns == stamp
    made = records.read(records.SeedNoise, run / "seed-noise.json")
    assert (made.run, made.seeds, len(set(made.adapters))) == (run.name, (0, 1, 2), 3)
    assert len(list((tmp_path / "runs" / "stages" / "train").glob("*/record.json"))) == 3
    assert f"promotion.seed_noise={run}" in said
    store = prepare(f"sqlite:///{tmp_path}/mlflow.db")
    assert verify(run, store).faults == ()

    assert main(["finetune", config, f"promotion.seed_noise={run}"]) == 0
    second = (tmp_path / "runs" / "latest").resolve()
    assert second != run
    assert json.loads((second / "promotion.json").read_text())["verdict"]["seed_noise"]["asked"] == made.asked
    assert replay(second) == []
    assert len(list((tmp_path / "runs" / "stages" / "train").glob("*/record.json"))) == 3
    assert verify(second, store).faults == ()
    assert main(["noise", config, "--seeds", "2"]) == 2
