"""Unsloth's script without Unsloth, which needs a GPU: what its two calls are given, read off the text."""

import ast

import pytest
from recipe_samples import order, unsloth_calls

from lora_select.recipes import emit


@pytest.mark.parametrize(
    ("quantize", "four", "eight"), [(None, "False", "False"), ("nf4", "True", "False"), ("int8", "False", "True")]
)
def test_the_script_says_the_chosen_numbers(tiny_model_folder, tmp_path, quantize, four, eight):
    told = order(tmp_path / "rows", tiny_model_folder, "rslora", quantize=quantize)
    (made,) = emit(told, ["unsloth"], tmp_path / "none", tmp_path)
    text = (tmp_path / "unsloth" / "train.py").read_text()
    loading, adapting = unsloth_calls(text)["from_pretrained"], unsloth_calls(text)["get_peft_model"]
    assert (loading["load_in_4bit"], loading["load_in_8bit"]) == (four, eight)
    assert (loading["max_seq_length"], loading["dtype"]) == (str(told.max_length), "torch.float32")
    assert ast.literal_eval(adapting["target_modules"]) == list(told.spec.target_modules)
    assert (adapting["r"], adapting["lora_alpha"]) == (str(told.spec.r), str(told.spec.lora_alpha))
    assert adapting["use_rslora"] == "True"
    assert text.index("import FastLanguageModel") < text.index("import torch")
    assert "never run" in made.written.notes[0]
    assert "never run" in text.split('"""')[1]
    assert (tmp_path / "unsloth" / "train.jsonl").is_file()
