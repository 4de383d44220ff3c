"""Turns as they occur, from OpenAI's to ShareGPT's, as canonical messages. What is not understood is named, never dropped unsaid."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from lora_select.data.reading.raw import JSON, KeyTwiceError

ROLES: Mapping[str, str] = {
    **dict.fromkeys(("system",), "system"),
    **dict.fromkeys(("developer",), "developer"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "bard", "bing", "model"), "assistant"),
    **dict.fromkeys(("tool", "observation", "function", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
"""What datasets call a role -> what it is here; `call` is an assistant turn whose text is a tool call as JSON."""

TEXT_PARTS = ("text", "input_text", "output_text")
LEARNT_KEYS = ("weight", "train", "loss")
REASONING_KEYS = ("reasoning_content", "thinking", "reasoning")
TURN_KEYS = frozenset(
    (
        "role",
        "from",
        "content",
        "value",
        "name",
        "tool_calls",
        "tool_call_id",
        "function_call",
        *LEARNT_KEYS,
        *REASONING_KEYS,
    )
)


class RowError(ValueError):
    """A row that cannot be used; the message is the reason that rejected rows are counted under."""


def message(turn: Any) -> dict[str, Any]:
    """The canonical message of a turn.

    Raises:
        RowError: the turn cannot be used; says why in a few words.
    """
    if not isinstance(turn, Mapping):
        raise RowError("a message that is no object")
    role = _role(turn)
    if role == "call":
        return _called(turn)
    content, thoughts = _result(turn) if role == "tool" else _content(turn.get("content", turn.get("value")))
    made: dict[str, Any] = {"role": role, "content": content}
    calls = _calls(turn)
    if calls and role != "assistant":
        raise RowError(f"a tool call in a {role} turn")
    if calls:
        made["tool_calls"] = calls
    for key in ("tool_call_id", "name"):
        if turn.get(key) is not None:
            made[key] = _text(turn[key], f"field {key}")
    if role == "assistant":
        reasoning = next((_text(turn[key], "reasoning") for key in REASONING_KEYS if turn.get(key)), thoughts)
        made |= {"reasoning_content": reasoning} if reasoning else {}
        made |= {} if _is_learnt(turn) else {"train": False}
    return made


def check(messages: list[dict[str, Any]]) -> None:
    """Refuse what cannot be learnt from: no answer, an answer before any question, turns without text.

    Raises:
        RowError: says which.
    """
    if not any(turn["role"] == "assistant" for turn in messages):
        raise RowError("no assistant turn")
    before = next(turn["role"] for turn in messages if turn["role"] not in ("system", "developer"))
    if before == "assistant":
        raise RowError("begins with the answer")
    for turn in messages:
        if not turn["content"].strip() and not turn.get("tool_calls"):
            if turn["role"] == "user":
                raise RowError("empty prompt")
            if turn["role"] == "assistant":
                raise RowError("empty answer")
    if not any(turn["role"] == "assistant" and turn.get("train", True) for turn in messages):
        raise RowError("no turn is learnt: every assistant turn has weight 0")


def tools(value: Any) -> list[dict[str, Any]] | None:
    """Tools in OpenAI's form, from a list, a single one, or either as JSON text; None where there are none.

    Raises:
        RowError: it is no list of functions.
    """
    given = parsed(value, "tools") or None
    if given is None:
        return None
    given = [given] if isinstance(given, Mapping) else given
    if not isinstance(given, list) or not all(isinstance(tool, Mapping) for tool in given):
        raise RowError("field tools is no list of functions")
    return [_tool(tool) for tool in given]


def nothing_filled_in(messages: list[dict[str, Any]], known: list[dict[str, Any]] | None) -> None:
    """Take out arguments that are null and no argument of the called tool: a table gives each call the columns of all."""
    allowed = {tool["function"]["name"]: _properties(tool) for tool in known or ()}
    for call in (call for turn in messages for call in turn.get("tool_calls") or ()):
        named = allowed.get(call["function"]["name"])
        if named is not None:
            arguments = call["function"]["arguments"]
            call["function"]["arguments"] = {k: v for k, v in arguments.items() if v is not None or k in named}


def check_text(value: Any) -> None:
    """Refuse what no tokenizer and no JSON can hold: half characters, NaN and infinity, numbers without end.

    Raises:
        RowError: says which.
    """
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise RowError("holds half a character (a lone surrogate)") from error
    except (ValueError, OverflowError) as error:
        said = {"digits": "holds a number of over 4300 digits", "Circular": "holds a value that holds itself"}
        known = next((reason for word, reason in said.items() if word in str(error)), None)
        raise RowError(known or "holds a number that JSON has not (NaN or infinity)") from error
    except TypeError as error:
        raise RowError("holds a value that is no JSON, such as a date or bytes") from error


def _role(turn: Mapping[str, Any]) -> str:
    role = turn.get("role", turn.get("from"))
    if role is None:
        raise RowError("a message without a role")
    if not isinstance(role, str):
        raise RowError("a role that is no text")
    if role.strip().lower() not in ROLES:
        raise RowError(f"unknown role {role[:40]}")
    return ROLES[role.strip().lower()]


def _content(value: Any) -> tuple[str, str]:
    """`(text, reasoning)`; the text parts of a list stand one after the other, as chat templates write them."""
    if value is None:
        return "", ""
    if isinstance(value, str):
        return value, ""
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list):
        raise RowError("a message whose content is no text")
    texts, thoughts = [], []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        kind = part.get("type", "text" if "text" in part else None) if isinstance(part, Mapping) else None
        if kind in TEXT_PARTS and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind == "thinking" and isinstance(part.get("thinking"), str):
            thoughts.append(part["thinking"])
        elif isinstance(kind, str):
            raise RowError(f"a part of type {kind[:40]}: only text is learnt")
        else:
            raise RowError("a message whose content is no text")
    return "".join(texts), "".join(thoughts)


def _result(turn: Mapping[str, Any]) -> tuple[str, str]:
    """What a tool gave back; an object that is no part of a message is written as JSON."""
    value = turn.get("content", turn.get("value"))
    items = value if isinstance(value, list) else [value]
    if isinstance(value, Mapping | list) and not any(isinstance(item, Mapping) and "type" in item for item in items):
        check_text(value)
        return json.dumps(value, ensure_ascii=False), ""
    return _content(value)


def _is_learnt(turn: Mapping[str, Any]) -> bool:
    for key in LEARNT_KEYS:
        value = turn.get(key)
        if value is None:
            continue
        if isinstance(value, str) and value.strip().lower() in ("true", "false", "0", "1"):
            value = value.strip().lower() in ("true", "1")
        if not isinstance(value, bool | int | float) or value != value:  # NaN
            raise RowError(f"a {key} that is neither a number nor true or false")
        if not value:
            return False
    return True


def partial_weight(turns: Iterable[Any]) -> bool:
    """Whether a turn has a weight between 0 and 1 or above: it is learnt, and weighs as much as any."""
    return any(
        isinstance(turn, Mapping) and isinstance(turn.get("weight"), int | float) and turn["weight"] not in (0, 1)
        for turn in turns
    )


def _calls(turn: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The calls of a turn, OpenAI's older single `function_call` too."""
    calls = parsed(turn.get("tool_calls"), "tool_calls") or []
    calls = [calls] if isinstance(calls, Mapping) else calls
    if not isinstance(calls, list):
        raise RowError("field tool_calls is no list")
    return [_call(call) for call in (*calls, *([turn["function_call"]] if turn.get("function_call") else []))]


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{what} is no text")
    return value


def _call(call: Any) -> dict[str, Any]:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    function = parsed(function, "function") if isinstance(function, str) and function.startswith("{") else function
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("a tool call without a function name")
    given = next((function[key] for key in ("arguments", "parameters") if function.get(key) is not None), {})
    arguments = parsed(given, "arguments") if given != "" else {}
    if not isinstance(arguments, Mapping):
        raise RowError("arguments of a tool call that are no object")
    made: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": dict(arguments)}}
    if call.get("id") is not None:
        made["id"] = str(call["id"])
    return made


def _called(turn: Mapping[str, Any]) -> dict[str, Any]:
    """ShareGPT's `function_call` turn: its text is one call or a list of them as JSON."""
    calls = parsed(turn.get("value", turn.get("content")), "function_call")
    calls = calls if isinstance(calls, list) else [calls]
    if not calls:
        raise RowError("a tool call without a function name")
    made = {"role": "assistant", "content": "", "tool_calls": [_call(call) for call in calls]}
    return made if _is_learnt(turn) else made | {"train": False}


def _tool(tool: Mapping[str, Any]) -> dict[str, Any]:
    function = tool.get("function", tool)
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str) or not function["name"]:
        raise RowError("a tool without a name")
    function = {k: v for k, v in function.items() if v is not None and not (k == "type" and v == "function")}
    parameters = parsed(function.get("parameters"), "parameters")
    if parameters is not None:
        function["parameters"] = _schema(parameters)
    return {"type": "function", "function": function}


def _schema(value: Any) -> Any:
    """A JSON schema without the nulls that a table filled in: null is no schema of a property."""
    if not isinstance(value, Mapping):
        return value
    made = {}
    for key, item in value.items():
        if key == "properties" and isinstance(item, Mapping):
            made[key] = {name: _schema(schema) for name, schema in item.items() if schema is not None}
        elif item is not None or key in ("default", "const"):
            made[key] = _schema(item) if key in ("items", "additionalProperties", "not") else item
    return made


def _properties(tool: Mapping[str, Any]) -> frozenset[str]:
    parameters = tool["function"].get("parameters")
    properties = parameters.get("properties", parameters) if isinstance(parameters, Mapping) else None
    return frozenset(properties) if isinstance(properties, Mapping) else frozenset()


def parsed(value: Any, name: str) -> Any:
    """CSV and Parquet often hold JSON as text."""
    if not isinstance(value, str):
        return value
    if not value.strip():
        return None
    try:
        return JSON.decode(value)
    except KeyTwiceError as error:
        raise RowError(str(error)) from error
    except (ValueError, RecursionError) as error:
        raise RowError(f"field {name} is no JSON") from error
