"""Whatever was trained becomes what simple loaders take, with the error that is stated."""

import json

import pytest
import torch
from moved_adapters import MODULES, logits
from moved_adapters import moved as adapter
from safetensors.torch import load_file

from lora_select import models
from lora_select.cli.main import main
from lora_select.errors import InputError
from lora_select.export.plain_lora import write_lora


def served(base_folder, folder):
    """A loader in the way of vLLM: r, alpha and two factors a layer, W + alpha / r B A; anything else is an error."""
    config = json.loads((folder / "adapter_config.json").read_text())
    assert not any(
        config.get(key) for key in ("use_dora", "use_rslora", "rank_pattern", "alpha_pattern", "modules_to_save")
    )
    assert config["bias"] == "none"
    model = models.load_model(str(base_folder))
    tensors = load_file(folder / "adapter_model.safetensors")
    with torch.no_grad():
        for key in [key for key in tensors if key.endswith("lora_A.weight")]:
            a, b = tensors[key], tensors.pop(key.replace("lora_A", "lora_B"))
            assert a.shape[0] == b.shape[1] == config["r"]
            layer = model.get_submodule(key.removeprefix("base_model.model.").removesuffix(".lora_A.weight"))
            layer.weight += config["lora_alpha"] / config["r"] * b @ a
            tensors.pop(key)
    assert not tensors
    return model


@pytest.mark.parametrize(
    ("name", "rank", "changes"),
    [
        ("rslora", 4, {}),
        ("lora", 6, {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {"q_proj": 20}}),
        ("miss", 4, {}),
        ("delora", 4, {}),
        ("psoft", 4, {}),
    ],
)
def test_exact_forms_are_found_at_their_rank(tiny_model_folder, tmp_path, name, rank, changes):
    model = adapter(tiny_model_folder, name, **changes)
    before = logits(model)
    made = write_lora(model, tmp_path, str(tiny_model_folder), rank=None, max_error=1e-5)
    assert (made.rank, made.method) == (rank, "exact")
    assert made.layers == 14
    torch.testing.assert_close(logits(model), before)
    torch.testing.assert_close(logits(served(tiny_model_folder, tmp_path)), before, rtol=1e-3, atol=1e-3)
    assert (before - logits(models.load_model(str(tiny_model_folder)))).abs().max() > 0.01


def test_a_truncation_has_the_error_that_it_states(tiny_model_folder, tmp_path):
    """loha's update has rank r^2 = 16; at rank 8 the dense difference is what the record says."""
    model = adapter(tiny_model_folder, "loha")
    with pytest.raises(
        InputError, match=r"at rank 2 plain LoRA misses the adapter by 0\.\d+ .*over the limit of 0\.01"
    ):
        write_lora(model, tmp_path / "no", "x", rank=2, max_error=1e-2)
    assert not (tmp_path / "no").exists()
    made = write_lora(model, tmp_path, "x", rank=8, max_error=1.0)
    assert made.method == "truncated"
    pristine, after = models.load_model(str(tiny_model_folder)), served(tiny_model_folder, tmp_path)
    merged = model.merge_and_unload()
    weights = [dict(m.named_parameters()) for m in (pristine, after, merged)]
    layers = [name for name in weights[0] if name.split(".")[-2] in MODULES]
    missed = sum(float((weights[1][n] - weights[2][n]).square().sum()) for n in layers)
    moved = sum(float((weights[0][n] - weights[2][n]).square().sum()) for n in layers)
    assert made.error == pytest.approx((missed / moved) ** 0.5, rel=1e-3)


def test_a_bias_and_an_empty_adapter_are_refused(tiny_model_folder, tmp_path):
    import peft

    config = peft.LoraConfig(r=4, target_modules=MODULES)
    untrained = peft.get_peft_model(models.load_model(str(tiny_model_folder)), config)
    with pytest.raises(InputError, match="adds nothing to any weight"):
        write_lora(untrained, tmp_path, "x", rank=None, max_error=1e-2)


@pytest.mark.parametrize("to", ["lora", pytest.param("merged", marks=pytest.mark.slow)])
def test_the_command_checks_in_a_new_process(tiny_model_folder, tmp_path, capsys, to):
    adapter(tiny_model_folder, "miss").save_pretrained(str(tmp_path / "adapter"))
    (tmp_path / "config.json").write_text('{"base_model": {"quantize": "nf4"}}')
    code = main(["export", str(tmp_path), "--to", to, "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    facts = json.loads((tmp_path / "out" / "export.json").read_text())
    assert facts["max_logit_difference"] < 1e-3 < facts["function_change"]
    assert "in a new process logits differ by" in printed.out
    assert "trained on a nf4 base, checked here on the base as published" in printed.out
    assert "FutureWarning" not in printed.err
    assert not (tmp_path / "out" / "reference_logits.safetensors").exists()
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_no_adapter_is_a_sentence(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "holds no adapter" in capsys.readouterr().err
