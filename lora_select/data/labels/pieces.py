"""The texts that a turn consists of, and whether a rendered text holds them: as they are, or escaped as templates escape."""

import html
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

Message = Mapping[str, Any]
THOUGHT_END = "</think>"


def holds(text: str, piece: str) -> bool:
    """Whether `piece` stands in `text`, but for white space at its ends, and for JSON's, Python's or HTML's escapes."""
    return find(text, piece, 0) is not None


def find(text: str, piece: str, start: int) -> tuple[int, int] | None:
    """Where `piece` first stands in `text` from `start` on: its first character and the one after it."""
    bare = piece.strip()
    for written in itertools.chain((bare,), _escaped(bare)):
        place = text.find(written, start)
        if place >= 0:
            return place, place + len(written)
    return None


def split_thought(content: str) -> tuple[str, str]:
    """`(thought, rest)` of an answer whose reasoning stands in its content; the thought is empty where there is none."""
    thought, end, rest = content.rpartition(THOUGHT_END)
    return (thought.replace("<think>", "", 1).strip(), rest) if end else ("", content)


def rest(message: Message) -> str:
    """An answer without its thought, which templates take out of earlier turns."""
    return split_thought(message["content"])[1].strip()


def of_calls(message: Message) -> tuple[str, ...]:
    """Names, argument names and argument values of a turn's tool calls."""
    return tuple(
        leaf
        for call in message.get("tool_calls") or ()
        for leaf in (call["function"]["name"], *_leaves(call["function"]["arguments"]))
    )


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key)
            yield from _leaves(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)


def _escaped(piece: str) -> Iterator[str]:
    """Other ways to write `piece`, those that differ from it."""
    ways = (
        json.dumps(piece, ensure_ascii=False)[1:-1],
        json.dumps(piece)[1:-1],
        repr(piece)[1:-1],
        html.escape(piece),
        json.dumps(json.dumps(piece, ensure_ascii=False)[1:-1], ensure_ascii=False)[1:-1],
    )
    yield from (way for way in dict.fromkeys(ways) if way != piece)
