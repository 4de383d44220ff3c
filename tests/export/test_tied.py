"""Adapters of the embedding and of the output head, where the base holds both in one matrix and where it does not."""

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file
from test_export import logits
from test_forms import saved

from lora_select import models, serving
from lora_select.export.command import export

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
