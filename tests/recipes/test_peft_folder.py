"""A written PEFT folder, loaded as a trainer would: on the pristine base, trainable, at the start that was measured."""

import json

import pytest
import torch
from byte_tokenizer import byte_tokenizer
from peft import PeftModel
from recipe_samples import order, write_spectra

from lora_select import models
from lora_select.errors import InputError
from lora_select.initialization import write_initialization
from lora_select.recipes import emit, peft
from lora_select.recipes.initial_adapter import named_init
from lora_select.recipes.recipe import START
from lora_select.training.worker.model import adapt
from lora_select.variants import VARIANTS

USUAL = ("lora", "dora", "eva", "lora_one", "pissa", "olora", "mica", "orthogonal", "vera", "hira")
OTHERS = [
    variant.name for variant in VARIANTS if variant.name not in (*USUAL, "milora", "lora_ga", "corda_ipm", "corda_kpm")
]
WIDE = ("vblora", "waveft", "c3a", "road")
"""Their blocks of 64 do not divide the tiny model's layers."""
IDS = torch.arange(4, 36)[None]


@pytest.fixture(scope="module")
def wide_model_folder(tmp_path_factory):
    """The tiny model, each side of each layer a multiple of 64."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("wide-llama")
    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=260, hidden_size=256, intermediate_size=256, **heads)).save_pretrained(
        folder
    )
    byte_tokenizer().save_pretrained(folder)
    return folder


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("name", [*USUAL, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)])
def test_it_loads_with_the_start_and_the_parameters_of_the_choice(request, tmp_path, name):
    folder = request.getfixturevalue("wide_model_folder" if name in WIDE else "tiny_model_folder")
    quantize = "nf4" if name == "loftq" else None
    told = order(tmp_path / "rows", folder, name, quantize=quantize)
    spectra = write_spectra(tmp_path / "spectra.safetensors", folder)
    emit(told, ["peft"], spectra, tmp_path)
    loaded = PeftModel.from_pretrained(
        models.load_model(str(folder)), str(tmp_path / "peft" / START), is_trainable=True
    )
    config = loaded.peft_config["default"]
    if told.spec.peft_class == "LoraConfig":
        assert (config.r, config.lora_alpha) == (told.spec.r, told.spec.lora_alpha)
    assert set(config.target_modules) == set(told.spec.target_modules)
    trained = {key: p for key, p in loaded.named_parameters() if p.requires_grad}
    if name == "lorafa":  # its optimizer holds A still, the folder does not know of it
        trained = {key: p for key, p in trained.items() if "lora_A" not in key}
    assert sum(p.numel() for p in trained.values()) == told.spec.num_parameters
    expected = measured_start(told, folder, spectra, tmp_path)
    torch.testing.assert_close(logits(loaded), logits(expected), rtol=1e-4, atol=1e-4)
    kept = dict(expected.named_parameters())
    if name in ("eva", "lora_one", "loftq", "pissa", "olora"):  # not random: the very tensors, up to an SVD's signs
        for key, tensor in trained.items():
            torch.testing.assert_close(tensor.abs(), kept[key].abs(), rtol=1e-3, atol=1e-4)


def measured_start(told, model, spectra, folder):
    """The model that lora-select itself would train."""
    made = told.spec if told.spec.init in ("pissa", "olora") else named_init(told.spec)
    factors = write_initialization(made, model, spectra, folder / "factors.safetensors", told.quantize)
    torch.manual_seed(told.plan.seed)
    return adapt(models.load_model(str(model)), made, told.plan, "tiny", str(factors) if factors else None)


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_a_start_by_name_is_exact_also_after_training(tiny_model_folder, tmp_path, name):
    """Trained, saved and loaded on the pristine base: PEFT makes the base's residual again, so the function stays."""
    told = order(tmp_path / "rows", tiny_model_folder, name)
    emit(told, ["peft"], tmp_path / "none", tmp_path)
    base = lambda: models.load_model(str(tiny_model_folder))  # noqa: E731
    model = PeftModel.from_pretrained(base(), str(tmp_path / "peft" / START), is_trainable=True)
    torch.testing.assert_close(logits(model), logits(base()), rtol=1e-3, atol=1e-3)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(3):
        model(input_ids=IDS, labels=IDS, use_cache=False).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert (logits(model) - logits(base())).abs().max() > 0.05
    model.save_pretrained(str(tmp_path / "trained"))
    again = PeftModel.from_pretrained(base(), str(tmp_path / "trained"))
    torch.testing.assert_close(logits(again), logits(model), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["milora", "lora_ga", "corda_ipm", "corda_kpm"])
def test_a_start_that_no_folder_holds_is_refused_with_the_way_out(tiny_model_folder, tmp_path, name):
    told = order(tmp_path / "rows", tiny_model_folder, name)
    with pytest.raises(InputError, match=rf"{name} takes its start .*`selection\.variant={name}`"):
        emit(told, ["peft"], tmp_path / "none", tmp_path)
    assert not (tmp_path / "peft").exists()


def test_what_was_trained_in_the_folder_outlives_a_second_writing(tiny_model_folder, tmp_path):
    told = order(tmp_path / "rows", tiny_model_folder)
    emit(told, ["peft"], tmp_path / "none", tmp_path)
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(b"what PEFT saved there")
    start = (tmp_path / "peft" / START / "adapter_model.safetensors").read_bytes()
    emit(told, ["peft"], tmp_path / "none", tmp_path)
    assert (tmp_path / "peft" / "adapter_model.safetensors").read_bytes() == b"what PEFT saved there"
    assert (tmp_path / "peft" / START / "adapter_model.safetensors").read_bytes() == start


def test_what_a_folder_cannot_hold_lies_beside_it(tiny_model_folder, tmp_path):
    told = order(tmp_path / "rows", tiny_model_folder, "loraplus")
    [made] = emit(told, ["peft"], tmp_path / "none", tmp_path)
    values = json.loads((tmp_path / "peft" / "training.json").read_text())
    assert values["learning_rate"] == told.plan.learning_rate
    assert values["rows_a_step"] == values["micro_batch_size"] * values["gradient_accumulation_steps"] == 8
    assert values["optimizer"] == {"name": "lora+", "lora_b_ratio": 16.0}
    assert any("lora+" in note for note in made.written.notes)
    assert made.written.command == peft.LOAD
