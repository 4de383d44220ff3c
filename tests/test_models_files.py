"""A model folder that cannot be adapted is refused in one sentence, before anything is loaded; what it is made of is named."""

import json
import shutil

import pytest

from lora_select import models
from lora_select.errors import InputError
from lora_select.models import model_folder


@pytest.fixture
def folder(tmp_path, tiny_model_folder):
    return shutil.copytree(tiny_model_folder, tmp_path / "model")


def refused(folder, tmp_path, *words):
    with pytest.raises(InputError) as caught:
        models.resolve(str(folder), cache=tmp_path / "cache")
    assert "\n" not in str(caught.value)
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, str(caught.value)


def configure(folder, **changes):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def in_parts(folder, index=True):
    """The model in two parts."""
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    names = sorted(tensors)
    (folder / "model.safetensors").unlink()
    halves = {"model-00001-of-00002.safetensors": names[:5], "model-00002-of-00002.safetensors": names[5:]}
    for file, part in halves.items():
        save_file({name: tensors[name] for name in part}, folder / file, metadata={"format": "pt"})
    if index:
        places = {name: file for file, part in halves.items() for name in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "bert", "architectures": ["BertForMaskedLM"]}, ["encoder", "BertForMaskedLM", "causal"]),
        ({"model_type": "roberta", "architectures": ["RobertaForCausalLM"]}, ["encoder"]),
        (
            {"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True},
            ["decoder", "T5"],
        ),
        (
            {"model_type": "bart", "architectures": ["BartForConditionalGeneration"], "is_encoder_decoder": True},
            ["decoder"],
        ),
        ({"model_type": "whisper", "architectures": ["WhisperModel"], "is_encoder_decoder": False}, ["WhisperModel"]),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, ["causal"]),
        ({"model_type": "newer-than-this"}, ["newer-than-this", "transformers"]),
        ({"architectures": ["LlamaModel"]}, ["LlamaModel", "head"]),
        ({"architectures": ["LlamaForSequenceClassification"]}, ["head"]),
        ({"vocab_size": None}, ["vocab_size"]),
        ({"hidden_size": "64"}, ["hidden_size"]),
        ({"vocab_size": 200}, ["260", "200", "tokenizer"]),
        ({"quantization_config": {"quant_method": "gptq"}}, ["gptq", "unquantised"]),
        ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
        ({"quantization_config": {"quant_method": "fp8"}}, ["fp8"]),
        ({"quantization_config": {"quant_method": "compressed-tensors"}}, ["compressed-tensors"]),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
            ["base_model.quantize", "nf4"],
        ),
        (
            {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
            ["base_model.quantize", "int8"],
        ),
        ({"text_config": {"quantization_config": {"quant_method": "fp8"}}}, ["fp8"]),
    ],
)
def test_configs_that_cannot_be_adapted(folder, tmp_path, config, words):
    configure(folder, **config)
    refused(folder, tmp_path, *words)


def test_a_decoder_of_an_encoders_type_is_taken(folder, tmp_path):
    configure(folder, model_type="bert", architectures=["BertLMHeadModel"], is_decoder=True)
    assert models.resolve(str(folder), cache=tmp_path / "cache").architecture == "BertLMHeadModel"


def test_a_left_over_adapter(folder, tmp_path):
    (folder / "adapter_config.json").write_text("{}")
    refused(folder, tmp_path, "adapter_config.json", "again")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    refused(folder, tmp_path, "is an adapter")


def test_an_adapter_alone(folder, tmp_path):
    (folder / "config.json").unlink()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    refused(folder, tmp_path, "is an adapter")


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json"])
def test_pointers(folder, tmp_path, name):
    (folder / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    refused(folder, tmp_path, name, "Git LFS pointer")


@pytest.mark.parametrize("kept", [0, 4, 8, 100, -1])
def test_cut_files(folder, tmp_path, kept):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:kept])
    refused(folder, tmp_path, "model.safetensors", "cut")


def test_parts(folder, tmp_path):
    whole = models.resolve(str(folder), cache=tmp_path / "cache").num_parameters
    in_parts(folder)
    assert models.resolve(str(folder), cache=tmp_path / "cache").num_parameters == whole
    (folder / "consolidated.safetensors").write_bytes(b"of another tool")
    assert models.resolve(str(folder), cache=tmp_path / "cache").num_parameters == whole
    (folder / "model-00002-of-00002.safetensors").unlink()
    refused(folder, tmp_path, "model-00002-of-00002.safetensors", "missing")
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, tmp_path, "model-00002-of-00002.safetensors", "missing")


def test_parts_without_an_index(folder, tmp_path):
    in_parts(folder, index=False)
    refused(folder, tmp_path, "model.safetensors.index.json")


def test_weights_that_are_there_twice(folder, tmp_path):
    single = (folder / "model.safetensors").read_bytes()
    in_parts(folder)
    (folder / "model.safetensors").write_bytes(single)
    refused(folder, tmp_path, "twice")


def test_a_file_of_another_kind(folder, tmp_path):
    (folder / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"[]")
    refused(folder, tmp_path, "no safetensors file")


def test_a_model_that_looks_ahead_is_refused_by_what_it_does(tiny_model_folder):
    import torch
    from transformers import BertConfig, BertLMHeadModel

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 60,
    }
    models.refuse_lookahead(models.load_model(str(tiny_model_folder)))
    with pytest.raises(InputError):
        models.refuse_lookahead(BertLMHeadModel(BertConfig(**sizes)).eval())


def test_parameters_are_counted_from_the_header(folder):
    held = models.load_model(str(folder))
    assert model_folder.parameters(folder / "model.safetensors") == sum(p.numel() for p in held.parameters())


@pytest.mark.parametrize("name", ["generation_config.json", "tokenizer_config.json", "chat_template.jinja"])
def test_pointers_in_the_place_of_what_says_how_the_model_is_used(folder, tmp_path, name):
    (folder / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 1\n")
    refused(folder, tmp_path, name, "Git LFS pointer")


def test_a_config_that_transformers_does_not_take(folder, tmp_path):
    configure(folder, num_attention_heads="4")
    refused(folder, tmp_path, "config.json", "num_attention_heads")


def test_a_tokenizer_that_cannot_be_read(folder):
    (folder / "tokenizer.json").write_text('{"version":')
    with pytest.raises(InputError, match=r"tokenizer in .* cannot be read"):
        models.load_tokenizer(str(folder))


def changed_weights(folder, name, change):
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    made = change(tensors.pop(name))
    save_file(tensors | ({} if made is None else {name: made}), folder / "model.safetensors", metadata={"format": "pt"})


WEIGHT = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize(
    ("change", "said"),
    [(lambda _: None, f"lack {WEIGHT}"), (lambda w: w[:3].clone(), f"hold {WEIGHT} in another shape")],
)
def test_no_weight_is_drawn_at_random(folder, change, said):
    changed_weights(folder, WEIGHT, change)
    with pytest.raises(InputError, match=said):
        models.load_model(str(folder))


def test_layers_that_the_files_lack_are_not_drawn_at_random(folder):
    configure(folder, num_hidden_layers=json.loads((folder / "config.json").read_text())["num_hidden_layers"] + 1)
    with pytest.raises(InputError, match="would be drawn at random"):
        models.load_model(str(folder))


@pytest.mark.parametrize("kind", ["int8", "float8_e4m3fn"])
def test_weights_that_are_quantised_without_a_word_in_the_config(folder, tmp_path, kind):
    import torch

    changed_weights(folder, WEIGHT, lambda weight: weight.to(getattr(torch, kind)))
    refused(folder, tmp_path, WEIGHT, "quantised")


def test_a_model_that_says_nan_is_refused_before_it_is_measured(folder):
    changed_weights(folder, WEIGHT, lambda weight: weight * float("nan"))
    with pytest.raises(InputError, match="NaN"):
        models.refuse_lookahead(models.load_model(str(folder)))
