"""Control tokens inside what people wrote: a turn that ends itself, or opens another one, is an injection."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_select.data.gate.checked_rows import Flag, GateRow
from lora_select.data.labels.render import turn_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COMMON = re.compile(
    r"<\|[a-zA-Z0-9_ ]{2,40}\|>|<｜[^｜<>]{1,40}｜>|<(?:start|end)_of_turn>|\[/?INST\]|<</?SYS>>|</?s>(?=\s|$|\[)"
    r"|\[(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|SYSTEM_PROMPT)\]|<(?:bos|eos|pad|unk)>"
)
"""Tokens of the common chat templates, for a check without a model."""


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> tuple[str, ...]:
    """The tokenizer's special and added tokens that can be written as text, longest first.

    Those that a person may well write (`<think>` is content in many sets, single signs) are not among them.
    """
    added = getattr(tokenizer, "added_tokens_decoder", {}) or {}
    names = {str(token) for token in tokenizer.all_special_tokens}
    names |= {str(token.content) for token in added.values() if getattr(token, "special", False)}
    names -= {"<think>", "</think>", "<tool_call>", "</tool_call>"}
    return tuple(
        sorted((name for name in names if len(name) > 2 and not name.isspace()), key=lambda name: (-len(name), name))
    )


def control_tokens(rows: Sequence[GateRow], tokens: Sequence[str] = ()) -> list[Flag]:
    """Rows with a control token inside a turn.

    Args:
        rows: all rows.
        tokens: the model's own (see `special_tokens`); without them those of the common templates are looked for.
    """
    pattern = re.compile("|".join(re.escape(token) for token in tokens)) if tokens else COMMON
    found = []
    for row in rows:
        for turn in row.messages:
            match = pattern.search(turn_text(turn))
            if match:
                found.append(Flag(row.row_id, row.split, f"{match.group()!r} in a turn of {turn['role']}"))
                break
    return found
