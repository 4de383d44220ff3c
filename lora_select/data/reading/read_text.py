"""Plain text: a paragraph, or a section of Markdown, is a row."""

import io
from collections.abc import Iterator
from typing import Any

from lora_select.data.reading.raw import LONGEST_LINE, RawRow, is_damaged, lines


def paragraphs(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """Paragraphs, separated by empty lines."""
    return _pieces(name, stream, lambda line, _fenced: not line.strip())


def sections(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """Sections, each with its heading; a `#` inside a fenced block is code."""
    return _pieces(name, stream, lambda line, fenced: line.startswith("#") and not fenced)


def _pieces(name: str, stream: io.TextIOWrapper, ends: Any) -> Iterator[RawRow]:
    held: list[str] = []
    start, fenced, size = 1, False, 0
    for number, line in lines(stream):
        if line is None or size > LONGEST_LINE:
            yield RawRow(name, number, {}, "a paragraph that is too long (over 64 MiB)")
            held, size = [], 0
            continue
        if line.lstrip().startswith("```"):
            fenced = not fenced
        if ends(line, fenced) and held:
            yield from _piece(name, start, held)
            held, size = [], 0
        if line.strip() or held:
            start = start if held else number
            held.append(line.rstrip("\r\n"))
            size += len(line)
    yield from _piece(name, start, held)


def _piece(name: str, start: int, held: list[str]) -> Iterator[RawRow]:
    text = "\n".join(held).strip("\n")
    if is_damaged(text):
        yield RawRow(name, start, {}, "not UTF-8")
    elif text.strip():
        yield RawRow(name, start, {"text": text})
