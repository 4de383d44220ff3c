"""Dataset formats: how each becomes canonical messages, and which one a set of columns is.

A canonical row is `{"messages": [{"role", "content", "tool_calls"?}], "tools": [...] | None}`.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from lora_select.data.render import TEXT_ROLE
from lora_select.errors import InputError

Columns = Mapping[str, Any]
ROLES = ("system", "user", "assistant", "tool", "function", "developer")
SHAREGPT_ROLES = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


class RowError(ValueError):
    """A row that cannot be used; the message is the reason that rejected rows are counted under."""


def detect(columns: Iterable[str]) -> str:
    """The format that these columns are.

    Raises:
        InputError: none; names the columns and every format's.
    """
    present = set(columns)
    for name, (needed, _convert) in FORMATS.items():
        if all(present & set(choices) for choices in needed):
            return name
    wanted = sorted({choice for needed, _ in FORMATS.values() for choices in needed for choice in choices})
    near = {column: difflib.get_close_matches(column, wanted, n=1) for column in sorted(present)}
    hints = "; ".join(f"did you mean `{match[0]}` by `{column}`?" for column, match in near.items() if match)
    known = "; ".join(f"{name} ({_needs(needed)})" for name, (needed, _) in FORMATS.items())
    raise InputError(
        f"the columns {', '.join(sorted(map(str, present))) or 'none'} are no known format"
        + (f"; {hints}" if hints else "")
        + f". Formats: {known}"
    )


def check(name: str, columns: Iterable[str]) -> None:
    """Check that a named format has its columns.

    Raises:
        InputError: one is missing.
    """
    present = set(columns)
    missing = [choices for choices in FORMATS[name][0] if not present & set(choices)]
    if missing:
        raise InputError(
            f"`dataset.format` is {name}, which needs {_needs(missing)}; the columns are {', '.join(sorted(map(str, present)))}"
        )


def convert(name: str, row: Columns) -> dict[str, Any]:
    """A canonical row.

    Raises:
        RowError: the row cannot be used; says why in a few words.
    """
    canonical = FORMATS[name][1](row)
    if name != "text":
        _check_messages(canonical["messages"])
    return canonical


def _needs(needed: Iterable[tuple[str, ...]]) -> str:
    return ", ".join("/".join(choices) for choices in needed)


def _check_messages(messages: list[dict[str, Any]]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        raise RowError("no assistant turn")
    if messages[0]["role"] == "assistant":
        raise RowError("begins with the answer")
    for message in messages:
        if message["role"] == "assistant" and not message["content"].strip() and not message.get("tool_calls"):
            raise RowError("empty answer")


def _text(row: Columns, *names: str, may_miss: bool = False) -> str:
    value = next((row[name] for name in names if row.get(name) is not None), None)
    if value is None:
        if may_miss:
            return ""
        raise RowError(f"missing field {names[0]}")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str):
        raise RowError(f"field {names[0]} is no text")
    return value


def _parsed(value: Any, field: str) -> Any:
    """CSV and Parquet often hold JSON as text."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError as error:
        raise RowError(f"field {field} is no JSON") from error


def _messages(row: Columns) -> dict[str, Any]:
    turns = _parsed(row.get("messages"), "messages")
    if not isinstance(turns, list) or not turns:
        raise RowError("missing field messages")
    tools = _parsed(row.get("tools"), "tools") or None
    if tools is not None and not (isinstance(tools, list) and all(isinstance(tool, Mapping) for tool in tools)):
        raise RowError("field tools is no list of functions")
    return {"messages": [_message(turn) for turn in turns], "tools": tools}


def _message(turn: Any) -> dict[str, Any]:
    if not isinstance(turn, Mapping) or "role" not in turn:
        raise RowError("a message without a role")
    if turn["role"] not in ROLES:
        raise RowError(f"unknown role {turn['role']}")
    content = turn.get("content")
    if content is not None and not isinstance(content, str):
        raise RowError("a message whose content is no text")
    message: dict[str, Any] = {"role": turn["role"], "content": content or ""}
    if turn.get("tool_calls"):
        message["tool_calls"] = [_call(call) for call in _parsed(turn["tool_calls"], "tool_calls")]
    return message


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise RowError("a tool call without a function name")
    arguments = _parsed(function.get("arguments", {}), "arguments")
    return {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _pair(prompt: str, answer: str, system: str = "") -> dict[str, Any]:
    if not prompt.strip():
        raise RowError("empty prompt")
    first = [{"role": "system", "content": system}] if system else []
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return {"messages": first + turns, "tools": None}


def _alpaca(row: Columns) -> dict[str, Any]:
    given = _text(row, "input", may_miss=True)
    prompt = "\n\n".join(part for part in (_text(row, "instruction"), given) if part.strip())
    return _pair(prompt, _text(row, "output"), _text(row, "system", may_miss=True))


def _sharegpt(row: Columns) -> dict[str, Any]:
    turns = _parsed(row.get("conversations"), "conversations")
    if not isinstance(turns, list) or not turns:
        raise RowError("missing field conversations")
    messages = []
    system = _text(row, "system", may_miss=True)
    if system:
        messages.append({"role": "system", "content": system})
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("from") not in SHAREGPT_ROLES:
            raise RowError(f"unknown role {turn.get('from') if isinstance(turn, Mapping) else turn}")
        messages.append({"role": SHAREGPT_ROLES[turn["from"]], "content": _text(turn, "value")})
    return {"messages": messages, "tools": _parsed(row.get("tools"), "tools") or None}


def _prompt_completion(row: Columns) -> dict[str, Any]:
    return _pair(_text(row, "prompt"), _text(row, "completion", "response"))


def _plain_text(row: Columns) -> dict[str, Any]:
    text = _text(row, "text")
    if not text.strip():
        raise RowError("empty text")
    return {"messages": [{"role": TEXT_ROLE, "content": text}], "tools": None}


FORMATS: Mapping[str, tuple[tuple[tuple[str, ...], ...], Callable[[Columns], dict[str, Any]]]] = {
    "messages": ((("messages",),), _messages),
    "sharegpt": ((("conversations",),), _sharegpt),
    "alpaca": ((("instruction",), ("output",)), _alpaca),
    "prompt-completion": ((("prompt",), ("completion", "response")), _prompt_completion),
    "text": ((("text",),), _plain_text),
}
"""Format -> the columns it needs (any one of each group) and its conversion; the first that fits is taken."""
