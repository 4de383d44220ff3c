"""Adapters of the embedding and of the output head, where the base holds both in one matrix and where it does not."""

import json
import shutil
import warnings

import pytest
import torch
from safetensors.torch import load_file
from test_export import logits
from test_forms import saved

from lora_select import models, serving
from lora_select.export.command import export
from lora_select.export.mlx_format import rope_unread
from lora_select.models import merging

CASES = {
    "head": {"target_modules": ["q_proj", "lm_head"]},
    "embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "both": {"target_modules": ["q_proj", "embed_tokens", "lm_head"]},
    "tied": {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True},
    "whole head": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "whole embedding": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "rows": {"target_modules": ["q_proj"], "trainable_token_indices": [5, 6, 7]},
    "layers alone": {"target_modules": ["q_proj"]},
}
ONE_MATRIX = {"tied", "rows", "layers alone"}
"""What leaves head and embedding the same."""


@pytest.fixture(scope="module")
def untied(tiny_model_folder, tmp_path_factory):
    """The tiny model with a head of its own."""
    import transformers

    folder = tmp_path_factory.mktemp("untied")
    config = transformers.AutoConfig.from_pretrained(tiny_model_folder, tie_word_embeddings=False)
    torch.manual_seed(5)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    models.load_tokenizer(str(tiny_model_folder)).save_pretrained(folder)
    return folder


@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("is_tied", [True, False])
def test_the_merged_model_has_the_adapter_s_function(tiny_model_folder, untied, tmp_path, name, is_tied):
    """Read anew from its folder, whose config says whether the head is the embedding."""
    base = tiny_model_folder if is_tied else untied
    folder, before = saved(base, tmp_path / "peft", "lora", **CASES[name])
    assert serving.faults(serving.read_folder(folder)) == ()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*tie_word_embeddings")
        model = models.with_adapter(models.load_model(str(base)), folder)
        own_head = models.write_merged(model, str(base), tmp_path / "out")
    assert own_head == (is_tied and name not in ONE_MATRIX)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] == (
        is_tied and not own_head
    )
    assert json.loads((tmp_path / "out" / "config.json").read_text())["rope_theta"] == 10000
    assert ("lm_head.weight" in load_file(tmp_path / "out" / "model.safetensors")) == (own_head or not is_tied)
    torch.testing.assert_close(logits(models.load_model(str(tmp_path / "out"))), before, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*tie_word_embeddings", "ignore:Setting `save_embedding_layers`")
def test_the_export_says_that_the_head_is_its_own(tiny_model_folder, tmp_path):
    folder, _ = saved(tiny_model_folder, tmp_path / "peft", "lora", **CASES["embedding"])
    made = export(folder, None, tmp_path / "out", rank=None, max_error=1e-2, serve="merged")
    assert (
        made.words
        == "the base with the adapter merged into it, and with an output head of its own, where the base's is its embedding"
    )
    assert made.max_logit_difference < 1e-4 < made.function_change


LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip


@pytest.mark.parametrize("rope", [{"rope_type": "default", "rope_theta": 1e5}, LLAMA3])
def test_the_merged_model_s_rotary_embedding_is_read_alike_by_older_readers(tiny_model_folder, tmp_path, rope):
    """At the top of the config, where MLX-LM and transformers 4 look, and where transformers 5 finds the same."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(tiny_model_folder)
    config.rope_parameters = dict(rope)
    config.save_pretrained(tmp_path)
    merging.spell_rope(tmp_path)
    told = json.loads((tmp_path / "config.json").read_text())
    assert told["rope_theta"] == rope["rope_theta"]
    assert told.get("rope_scaling", {}).get("factor") == rope.get("factor")
    assert transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters == rope


@pytest.mark.parametrize(
    ("kind", "theta", "more", "noted"),
    [
        ("llama", 1e5, {}, True),
        ("llama", 1e4, {}, False),
        ("llama", 1e5, {"rope_theta": 1e5}, False),
        ("qwen3", 1e5, {}, False),
    ],
)
def test_a_base_that_mlx_would_turn_otherwise_is_told(tmp_path, kind, theta, more, noted):
    config = {"model_type": kind, "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    (tmp_path / "config.json").write_text(json.dumps(config | more))
    found = rope_unread(tmp_path)
    assert len(found) == noted
    assert all('"rope_theta": 100000 at its top' in line for line in found)


@pytest.mark.slow
def test_the_export_to_mlx_tells_it(tiny_model_folder, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(tiny_model_folder, base)
    config = json.loads((base / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 1e5
    (base / "config.json").write_text(json.dumps(config))
    folder, _ = saved(base, tmp_path / "peft", "lora")
    [note] = export(folder, None, tmp_path / "out", rank=None, max_error=1e-2, serve="mlx").warnings
    assert "rope_theta 100000" in note
