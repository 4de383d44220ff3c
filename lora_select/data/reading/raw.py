"""A row as it was found, and the text of a file: encodings, lines, bytes that are no text."""

import codecs
import io
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

LONGEST_LINE = 64 * 2**20
"""Characters; a longer line is counted and passed over, so that no file can fill the memory."""

CHUNK = 2**18
"""Characters that are read at once."""

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")


class KeyTwiceError(ValueError):
    """An object of JSON has a key twice: one of the two values would be lost."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise KeyTwiceError(f"the key {twice[:40]} stands twice in one object")
    return made


JSON = json.JSONDecoder(object_pairs_hook=_object)
"""Reads JSON; raises :class:`KeyTwiceError` where Python's own would keep the last value of a key unsaid."""


def printable(text: str) -> str:
    """The text as every file and terminal takes it: half characters, and bytes of names that are no UTF-8, as escapes."""
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


@dataclass(frozen=True)
class RawRow:
    """A row as it was found: `line` is the 1-based line (number of the row in JSON, Parquet and Arrow).

    `fault` says why it cannot be read; `split` is the split that the file itself names (an object with `train` and `test`).
    """

    file: str
    line: int
    values: Mapping[str, Any]
    fault: str | None = None
    split: str | None = None
    nulls_filled: bool = False
    """Arrow filled the fields of its structs: a null may be no value of the row's."""


def text_stream(stream: IO[bytes]) -> io.TextIOWrapper:
    """The text of a stream; bytes that are no UTF-8 become surrogates, which no valid UTF-8 holds, and so are found by line."""
    buffered = stream if hasattr(stream, "peek") else io.BufferedReader(stream)  # pyright: ignore[reportArgumentType]
    head = buffered.peek(4096)[:4096]  # pyright: ignore[reportAttributeAccessIssue]
    encoding = next((name for bom, name in _BOMS if head.startswith(bom)), None) or _without_bom(head)
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    return io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="")  # pyright: ignore[reportArgumentType]


def _without_bom(head: bytes) -> str:
    """UTF-16 without a mark shows by its NUL bytes: every second one, in text that is mostly Latin."""
    pairs = len(head) // 2
    if pairs >= 4:
        even, odd = head[0 : 2 * pairs : 2].count(0), head[1 : 2 * pairs : 2].count(0)
        if odd > 0.6 * pairs and even < 0.1 * pairs:
            return "utf-16-le"
        if even > 0.6 * pairs and odd < 0.1 * pairs:
            return "utf-16-be"
    return "utf-8"


def lines(stream: io.TextIOBase) -> Iterator[tuple[int, str | None]]:
    """`(number, line)`; None for a line that is too long. Only CR, LF and CR LF end a line, never U+2028."""
    number = 0
    while line := stream.readline(LONGEST_LINE):
        number += 1
        if len(line) < LONGEST_LINE or line.endswith(("\n", "\r")):
            yield number, line
            continue
        while (more := stream.readline(LONGEST_LINE)) and not more.endswith(("\n", "\r")):
            pass
        yield number, None


def is_damaged(text: str) -> bool:
    """Whether bytes that are no UTF-8 were read into a text."""
    return not text.isascii() and _ESCAPED.search(text) is not None
