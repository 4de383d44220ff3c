"""From messages to text: the chat template, and plain documented fallbacks where it has no say.

A canonical row is `{"messages": [...], "tools": [...] | None}`. A row of plain text is one message of role `text`.
"""

import functools
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Row = Mapping[str, Any]
TEXT_ROLE = "text"
TOOLS_HEAD = "You can call these functions. Answer with a JSON list of calls.\n"
_PROBE = {"type": "function", "function": {"name": "probe_tool_name", "parameters": {}}}


def is_text(row: Row) -> bool:
    """Whether the row is plain text, every token of which is a label."""
    return len(row["messages"]) == 1 and row["messages"][0]["role"] == TEXT_ROLE


def render(row: Row, tokenizer: "PreTrainedTokenizerBase", *, upto: int | None = None, prompt: bool = False) -> str:
    """The text of the first `upto` messages (all when None), with the opening of an answer when `prompt`.

    Without a chat template the text opens as the tokenizer opens any text (`<bos>`, where it has one), messages are separated
    by one newline and answers end with the end-of-text token. With a
    template that does not render tools or tool calls (found by rendering), tools go into the system message and calls
    into the answer's content, both as JSON: nothing the row holds is dropped.
    """
    messages = row["messages"][:upto]
    if is_text(row):
        return messages[0]["content"] + (tokenizer.eos_token or "") if messages else ""
    if not getattr(tokenizer, "chat_template", None):
        return _plain(_with_json_tools(row["messages"], row.get("tools"))[: _shifted(row, upto)], tokenizer, prompt)
    tools = row.get("tools")
    if tools and not _renders_tools(tokenizer):
        messages = _with_json_tools(row["messages"], tools)[: _shifted(row, upto)]
        tools = None
    elif not _renders_tools(tokenizer):
        messages = _with_json_tools(messages, None)
    text = tokenizer.apply_chat_template(
        list(messages), tools=tools or None, tokenize=False, add_generation_prompt=prompt
    )
    return str(text)


def prompt_and_answer(row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[str, str]:
    """What the model is given and what it should say: all before the last assistant turn, and that turn's content."""
    messages = row["messages"]
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
    if last is None:
        return "", render(row, tokenizer)
    return render(row, tokenizer, upto=last, prompt=True), answer_text(messages[last])


def answer_text(message: Mapping[str, Any]) -> str:
    """An assistant turn's content; tool calls as a JSON list of `{"name": ..., "arguments": {...}}`."""
    calls = message.get("tool_calls")
    if not calls:
        return message.get("content") or ""
    plain = [call.get("function", call) for call in calls]
    text = json.dumps([{"name": c["name"], "arguments": c["arguments"]} for c in plain], ensure_ascii=False)
    return "\n".join(part for part in (message.get("content"), text) if part)


def _with_json_tools(messages: Sequence[Mapping[str, Any]], tools: Any) -> list[dict[str, Any]]:
    plain = [{"role": m["role"], "content": answer_text(m)} for m in messages]
    if not tools:
        return plain
    described = TOOLS_HEAD + json.dumps([t.get("function", t) for t in tools], ensure_ascii=False)
    if plain and plain[0]["role"] == "system":
        return [{"role": "system", "content": f"{plain[0]['content']}\n{described}"}, *plain[1:]]
    return [{"role": "system", "content": described}, *plain]


def _shifted(row: Row, upto: int | None) -> int | None:
    """`upto` counted in the messages with the tools' system message in front."""
    if upto is None or not row.get("tools"):
        return upto
    has_system = bool(row["messages"]) and row["messages"][0]["role"] == "system"
    return upto if has_system else upto + 1


def opening(tokenizer: "PreTrainedTokenizerBase") -> str:
    """What the tokenizer puts before plain text, as text: models that were trained with a start token are lost without it."""
    ids = tokenizer("")["input_ids"]
    return str(tokenizer.decode(ids)) if ids else ""  # pyright: ignore[reportArgumentType]


def _plain(messages: Sequence[Mapping[str, Any]], tokenizer: "PreTrainedTokenizerBase", prompt: bool) -> str:
    end = tokenizer.eos_token or ""
    parts = [m["content"] + (end if m["role"] == "assistant" else "") + "\n" for m in messages]
    text = opening(tokenizer) + "".join(parts)
    return text if prompt or not text.endswith(f"{end}\n") or not end else text[:-1]


@functools.lru_cache(maxsize=8)
def _renders(template: str, tokenizer: "PreTrainedTokenizerBase") -> bool:
    call = {"type": "function", "function": {"name": "probe_call_name", "arguments": {}}}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "", "tool_calls": [call]}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tools=[_PROBE], tokenize=False))
    except Exception:  # a template may raise anything on what it does not expect
        return False
    return "probe_tool_name" in text and "probe_call_name" in text and bool(template)


def _renders_tools(tokenizer: "PreTrainedTokenizerBase") -> bool:
    return _renders(str(tokenizer.chat_template), tokenizer)
