"""What `lora_select.callbacks` measures while TRL trains, and what the filter keeps after it, reaches TensorBoard and W&B (offline) through TRL's own reporters."""

import json

import pytest
from test_peers import ROOT, run

pytestmark = pytest.mark.peers


def test_trl_s_reporters_hold_what_was_measured_needs_peers(tiny_model_folder, tmp_path):
    script = ROOT / "tests" / "peers" / "in_trackers.py"
    arguments = [str(script), str(tiny_model_folder), str(tmp_path)]
    printed = run("trl", arguments, tmp_path, WANDB_DISABLED="false", PYTHONPATH=str(ROOT))
    found = json.loads(printed.splitlines()[-1])
    assert [point["step"] for point in found["seen"]] == [0, 1, 2, 3]
    for name in ("validation_loss", "retention_loss", "forgetting", "forgetting_se"):
        measured = [(point["step"], point[f"eval_{name}"]) for point in found["seen"]]
        for tracker in ("tensorboard", "wandb"):
            held = [tuple(point) for point in found[tracker][f"eval/{name}"]]
            assert [step for step, _ in held] == [step for step, _ in measured]
            assert [value for _, value in held] == pytest.approx([value for _, value in measured], abs=1e-6)
        assert len(set(measured)) == 4
    assert {"eval_retained_prose_raw", "eval_retained_prose_served"} < set(found["table"])
    for name, value in found["table"].items():
        for tracker in ("tensorboard", "wandb"):
            ((step, held),) = found[tracker][f"eval/{name.removeprefix('eval_')}"]
            assert (step, held) == (3, pytest.approx(value, abs=1e-6))
    for folder in ("adapter", "adapter-raw"):
        assert (tmp_path / "kept" / folder / "adapter_model.safetensors").is_file()
