"""The rows that every tool is handed: all of them, with the text and the labels that were measured."""

import dataclasses
import json

import pytest
from recipe_samples import chats, order, write_jsonl

from lora_select import models
from lora_select.data.intake import intake, read_canonical
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.recipes import TOOLS, emit
from lora_select.recipes.rows import pieces, read, tokens, with_tokens

TEXTS = [{"text": f"number {n} and some more"} for n in range(20)]


def learnt(tool: str, row) -> list[tuple[bool, str]]:
    """A written row back in pieces."""
    if tool == "llamafactory":
        return [(turn["from"] == "gpt", turn["value"]) for turn in row["conversations"]]
    if tool == "ms-swift":
        return [(turn["role"] == "assistant", turn["content"]) for turn in row["messages"]]
    if tool == "axolotl":
        return [(segment["label"], segment["text"]) for segment in row["segments"]]
    return [(piece["learn"], piece["text"]) for piece in row]


@pytest.mark.parametrize("rows", [chats(), TEXTS], ids=["chats", "texts"])
def test_every_tool_gets_every_row_with_the_measured_tokens_and_labels(tiny_model_folder, tmp_path, rows):
    told = order(tmp_path / "rows", tiny_model_folder, rows=rows)
    emit(told, [name for name in TOOLS if name != "peft"], tmp_path / "none", tmp_path)
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    for split in ("train", "eval"):
        canonical = list(read_canonical(tmp_path / "rows" / f"{split}.parquet"))
        assert canonical
        for tool in TOOLS:
            if tool == "peft":
                continue
            lines = (tmp_path / tool / f"{split}.jsonl").read_text().splitlines()
            assert len(lines) == len(canonical)
            for line, (row_id, row) in zip(lines, canonical, strict=True):
                measured = tokenize(row_id, row, tokenizer, 10_000).row
                ids, mask = tokens(tuple(learnt(tool, json.loads(line))), tokenizer)
                end = max(i for i, label in enumerate(measured.label_mask) if label) + 1
                assert ids == measured.input_ids[:end]
                assert mask == measured.label_mask[:end]
    assert len(told.rows.train) + len(told.rows.eval) == len(rows)
    assert told.rows.other_tokens == 0


@pytest.mark.parametrize("rows", [chats(), TEXTS], ids=["chats", "texts"])
def test_reference_text_follows_the_rows_that_are_trained_on_in_every_tool_s_form(tiny_model_folder, tmp_path, rows):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    prose = tokenizer("A language reference, in a piece of its own.", add_special_tokens=False)["input_ids"]
    opened = [tokenizer.eos_token_id, *prose]
    talk = tokenize("talk", {"messages": chats(4)[1]["messages"], "tools": None}, tokenizer, 10_000).row
    added = [
        TokenRow("prose", tuple(prose), (False, *[True] * (len(prose) - 1))),
        TokenRow("opened", tuple(opened), (False, *[True] * len(prose))),
        talk,
    ]
    plain = order(tmp_path / "rows", tiny_model_folder, rows=rows)
    told = dataclasses.replace(plain, rows=with_tokens(plain.rows, added, tokenizer))
    assert told.rows.other_tokens == 0
    tools = [name for name in TOOLS if name != "peft"]
    emit(told, tools, tmp_path / "none", tmp_path)
    for tool in tools:
        parts = [(tmp_path / tool / f"{name}.jsonl").read_text().splitlines() for name in ("train", "eval")]
        assert [len(part) for part in parts] == [len(plain.rows.train) + 3, len(plain.rows.eval)]
        for line, row in zip(parts[0][-3:], added, strict=True):
            ids, mask = tokens(tuple(learnt(tool, json.loads(line))), tokenizer)
            assert (ids, mask) == (row.input_ids[: len(ids)], row.label_mask[: len(ids)])
            assert sum(mask) == sum(row.label_mask)


def test_reference_text_that_ends_within_a_character_is_counted(tiny_model_folder, tmp_path):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    ids = tuple(tokenizer("na\u00efve caf\u00e9", add_special_tokens=False)["input_ids"])
    cut = TokenRow("cut", ids[:-1], (False, *[True] * (len(ids) - 2)))
    rows = with_tokens(order(tmp_path / "rows", tiny_model_folder).rows, [cut], tokenizer)
    assert rows.other_tokens == 1


def test_a_token_over_the_seam_is_counted(tiny_model_folder, tmp_path):
    from tokenizers import AddedToken

    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    tokenizer.add_tokens([AddedToken("\nyes", special=False)])
    tokenizer.save_pretrained(tmp_path / "model")
    for file in ("config.json", "model.safetensors"):
        (tmp_path / "model" / file).write_bytes((tiny_model_folder / file).read_bytes())
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{n}"},
                {"role": "assistant", "content": f"{'yes' if n % 2 else 'no'} {n}"},
            ]
        }
        for n in range(20)
    ]
    dataset = intake(source=str(write_jsonl(tmp_path / "r.jsonl", rows)), name="t", folder=tmp_path, eval_fraction=0.4)
    assert read(dataset, tmp_path, models.resolve(str(tmp_path / "model"))).other_tokens == 10


def test_without_a_chat_template_the_fallback_text_is_written(tiny_model_folder):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    tokenizer.chat_template = None
    made = pieces({"messages": chats()[0]["messages"], "tools": None}, tokenizer)
    assert made == (((False, "say 0\n"), (True, "0! <|im_end|>")),)
