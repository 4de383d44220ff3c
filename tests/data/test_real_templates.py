"""The small templates behave as the models' own: the same cells of the table come out of TRL's copies of the real ones."""

import os
import re
from pathlib import Path

import pytest
from byte_tokenizer import byte_tokenizer
from chat_templates import tokenizer_of
from test_chat_templates import ROWS, cell, made_of

pytestmark = pytest.mark.peers
PEERS = Path(os.environ.get("LORA_SELECT_PEERS", Path(__file__).parents[2] / ".peers"))
SAME = {
    "cohere": "system-in-user",
    "deepseek_r1_distill": "cut-thought-alone",
    "deepseekv3": "cut-thought",
    "gemma": "alternating",
    "gemma3": "system-in-user",
    "glm4moe": "endless",
    "gptoss": "channels",
    "idefics3": "parts",
    "lfm2": "tools-alone",
    "lfm2_v2": "im",
    "llama3": "eot",
    "llama3_1": "one-call",
    "llama3_2": "one-call",
    "llava_next": "parts-of-two",
    "nemotron_3_nano": "joined-thought",
    "nemotron_3_super": "joined-thought",
    "nemotron_3_ultra": "joined-thought",
    "phi3": "tail",
    "phi3_5": "tail",
    "qwen2_5": "im",
    "qwen2_5_vl": "eot",
    "qwen3": "empty-thought",
    "qwen3_5_think": "open-thought",
    "qwen3_6": "open-thought",
    "qwen3_instruct_2507": "im",
    "qwen3_vl": "im",
    "smolvlm": "parts",
}
"""TRL's file -> the small template. Mistral-Small's is not among TRL's."""
ENDS = {
    "cohere": "<|END_OF_TURN_TOKEN|>",
    "gemma": "<end_of_turn>",
    "gptoss": "<|return|>",
    "idefics3": "<end_of_utterance>",
    "llama3": "<|eot_id|>",
    "phi3": "<|end|>",
    "smolvlm": "<end_of_utterance>",
}
MARKS = r"<\|[^<>{}'\"|]+\|>|\[/?[A-Z_]+\]|<｜[^<>{}'\"]+｜>|<(?:start|end)_of_(?:turn|utterance)>|</?s>"


@pytest.mark.parametrize("name", SAME)
def test_a_real_template_gives_the_cells_of_the_small_one_needs_peers(name, tmp_path):
    folders = sorted(PEERS.glob("trl/lib/python3*/site-packages/trl/chat_templates"))
    if not folders:
        pytest.skip("trl is not installed: make peers (or name its environments' folder in LORA_SELECT_PEERS)")
    template = (folders[0] / f"{name}.jinja").read_text(encoding="utf-8")
    tokenizer = byte_tokenizer()
    end = next((end for stem, end in ENDS.items() if name.startswith(stem)), None)
    marks = {*re.findall(MARKS, template), *([end] if end else [])} - set(tokenizer.get_vocab())
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(marks)})
    tokenizer.chat_template, tokenizer.eos_token = template, end or "<|im_end|>"
    if name == "gptoss":
        named = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|call|>")]
        (tmp_path / "generation_config.json").write_text(f'{{"eos_token_id": {named}}}')
        tokenizer.name_or_path = str(tmp_path)
    (tmp_path / "small").mkdir()
    small = tokenizer_of(SAME[name], tmp_path / "small")
    for kind in ROWS:
        assert cell(made_of(tokenizer, kind)) == cell(made_of(small, kind)), kind
