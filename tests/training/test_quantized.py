"""QLoRA: an adapter on a base in nf4 or int8 trains, is saved, and is proven on the same base in a new process."""

import dataclasses

import pytest
from initialization_specs import spec as start_spec
from training_jobs import MODULES, job

from lora_select import models
from lora_select.errors import InputError
from lora_select.initialization import write_initialization
from lora_select.training import reload_check
from lora_select.training.reload_check import examine
from lora_select.training.supervisor import launch


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_the_linear_layers_but_the_head_are_stored_so(tiny_model_folder, kind):
    pytest.importorskip("bitsandbytes")
    model = models.load_model(str(tiny_model_folder), quantize=kind)
    layer = model.get_submodule("model.layers.0.mlp.up_proj")
    assert layer.weight.dtype.itemsize == 1
    assert layer.weight.numel() == 128 * 64 // (2 if kind == "nf4" else 1)
    assert model.get_output_embeddings().weight.dtype.itemsize == 4


def test_unknown_kinds_and_a_missing_package_are_sentences(tiny_model_folder, monkeypatch):
    with pytest.raises(InputError, match="'fp4' is unknown; known: nf4, int8"):
        models.load_model(str(tiny_model_folder), quantize="fp4")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="a base in nf4 needs bitsandbytes"):
        models.quantization("nf4", "float32")


@pytest.mark.slow
@pytest.mark.parametrize("start", ["default", "loftq"])
def test_two_ranks_train_on_nf4_and_the_proof_holds(tiny_model_folder, tmp_path, start):
    pytest.importorskip("bitsandbytes")
    folder = tmp_path / "run"
    told = dataclasses.replace(job(folder, tiny_model_folder, count=64, total_steps=8), quantized_base="nf4")
    if start == "loftq":
        asked = start_spec("loftq", 4, MODULES)
        factors = write_initialization(asked, tiny_model_folder, tmp_path, tmp_path / "loftq.safetensors", "nf4")
        told = dataclasses.replace(told, spec=asked, initial_factors=str(factors))
    adapter = launch.train(told, folder)
    assert adapter.steps == 8
    base = models.resolve(str(tiny_model_folder), cache=tmp_path / "cache")
    proof = reload_check.check_reload(base, folder, precision="fp32", folder=tmp_path)
    assert proof.passed, proof.faults
    assert proof.function_change > 0.01
    elsewhere = dataclasses.replace(told, quantized_base=None)
    launch.job.write_job(folder, elsewhere)
    assert examine(str(tiny_model_folder), folder, "fp32").max_logit_difference > 100 * proof.max_logit_difference
