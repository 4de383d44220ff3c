"""Rows of JSON and JSON lines: a list, an object, columns, or one object a line, whatever the suffix says."""

import io
import json
from collections.abc import Iterator, Mapping
from typing import Any

from lora_select.data.reading.raw import CHUNK, JSON, LONGEST_LINE, KeyTwiceError, RawRow, is_damaged, lines
from lora_select.data.reading.source_files import SPLITS
from lora_select.errors import InputError

LARGEST_OBJECT = 512 * 2**20
"""Characters of one JSON value (a whole file, where it is an object) that is read at once."""

MOST_DIGITS = 4300
"""Of a number: Python reads no longer one."""


def json_lines(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """JSON lines; a file that is one list, or objects over several lines, is read as that."""
    number, line, cut = _first(stream)
    start = line.strip()
    if (start[:1] == "[" and not _is_other_list(line)) or (not cut and _is_begun_object(start)):
        yield from _json_values(name, stream, line, number)
        return
    if cut:
        line += stream.readline(LONGEST_LINE)
    if start:
        yield _parsed_line(name, number, line)
    yield from _json_rest(name, stream, number)


def _first(stream: io.TextIOWrapper) -> tuple[int, str, bool]:
    """Number and text of the first line that is not empty; of a long one the beginning, and that it goes on."""
    number = 1
    while (line := stream.readline(CHUNK)) and not line.strip("\ufeff \t\r\n"):
        number += line.endswith(("\n", "\r"))
    return number, line.lstrip("\ufeff"), len(line) == CHUNK and not line.endswith(("\n", "\r"))


def _json_rest(name: str, stream: io.TextIOWrapper, before: int) -> Iterator[RawRow]:
    for number, line in lines(stream):
        if line is None:
            yield RawRow(name, before + number, {}, "a line that is too long (over 64 MiB)")
        elif line.strip():
            yield _parsed_line(name, before + number, line)


def _is_begun_object(start: str) -> bool:
    return start == "{" or (start[:1] == "{" and start.endswith((",", "{", "[", ":")))


def _is_other_list(line: str) -> bool:
    """Whether a line is a whole list that is not a list of rows."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return not any(isinstance(item, Mapping) for item in value)


def _parsed_line(name: str, number: int, line: str) -> RawRow:
    try:
        values = JSON.decode(line.lstrip("\ufeff"))
    except RecursionError:
        return RawRow(name, number, {}, "nested too deeply")
    except ValueError as error:
        return RawRow(name, number, {}, _why_no_json(line, error))
    if not isinstance(values, dict):
        return RawRow(name, number, {}, "not a JSON object")
    if is_damaged(line):
        return RawRow(name, number, {}, "not UTF-8")
    return RawRow(name, number, values)


def _why_no_json(line: str, error: ValueError) -> str:
    if is_damaged(line):
        return "not UTF-8"
    if isinstance(error, KeyTwiceError):
        return str(error)
    if not isinstance(error, json.JSONDecodeError) and "digits" in str(error):
        return f"a number of over {MOST_DIGITS} digits"
    return "broken JSON"


def json_file(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """A list, an object, or (whatever the suffix says) one object a line."""
    number, line, _ = _first(stream)
    if not _is_object(line):
        yield from _json_values(name, stream, line, number)
        return
    rest = _json_rest(name, stream, number)
    second = next(rest, None)
    if second is None:
        yield from _rows_of(name, _Values(name, stream, line, number).only())
        return
    yield _parsed_line(name, number, line)
    yield second
    yield from rest


def _is_object(line: str) -> bool:
    try:
        return isinstance(json.loads(line), dict)
    except (ValueError, RecursionError):
        return False


def _json_values(name: str, stream: io.TextIOWrapper, begun: str, number: int) -> Iterator[RawRow]:
    """The rows of a list, or of one or several objects; `begun` is what was read already, from line `number` on."""
    values = _Values(name, stream, begun, number)
    if not values.rest():
        return
    if values.take("["):
        count = 0
        for count, value in enumerate(values.until("]"), start=1):
            yield _row(name, count, value)
        if values.rest():
            raise values.broken("text after the list")
        return
    first = next(values.until(""), None)
    if first is None:
        return
    second = next(more := values.until(""), None)
    if second is None:
        yield from _rows_of(name, first)
        return
    for count, value in enumerate([first, second], start=1):
        yield _row(name, count, value)
    for count, value in enumerate(more, start=3):
        yield _row(name, count, value)


def _row(name: str, number: int, value: Any, split: str | None = None) -> RawRow:
    if isinstance(value, KeyTwiceError):
        return RawRow(name, number, {}, str(value), split)
    if not isinstance(value, Mapping):
        return RawRow(name, number, {}, "not a JSON object", split)
    return RawRow(name, number, value, None, split)


def _rows_of(name: str, content: Any) -> Iterator[RawRow]:
    """The rows of a file that is one object: itself, a list in it, lists by split, or columns (pandas' two spellings)."""
    if isinstance(content, KeyTwiceError):
        raise InputError(f"{name}: {content}, so one of its values would be lost; rename or remove one")
    if not isinstance(content, Mapping):
        raise InputError(f"{name} must hold a list of rows (or an object with one list), got {type(content).__name__}")
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    of_objects = {
        key: value for key, value in lists.items() if value and all(isinstance(item, Mapping) for item in value)
    }
    is_row = any({"role", "from"} & set(item) for value in of_objects.values() for item in value)
    if of_objects and not is_row and set(of_objects) <= set(SPLITS):
        listed = [(SPLITS[key], item) for key, value in of_objects.items() for item in value]
        for number, (split, item) in enumerate(listed, start=1):
            yield _row(name, number, item, split)
        return
    rows = None if is_row else _listed(content, lists, of_objects)
    for number, item in enumerate([content] if rows is None else rows, start=1):
        yield _row(name, number, item)


def _listed(
    content: Mapping[str, Any], lists: Mapping[str, list[Any]], of_objects: Mapping[str, Any]
) -> list[Any] | None:
    """The rows that an object's one list, or its columns, hold; None where it is a row itself."""
    if len(lists) == 1 and (of_objects or (len(content) == 1 and not _is_column(next(iter(lists.values()))))):
        return next(iter(lists.values()))
    if lists and len(lists) == len(content) and len({len(value) for value in lists.values()}) == 1:
        return [dict(zip(lists, cells, strict=True)) for cells in zip(*lists.values(), strict=True)]
    if content and all(isinstance(value, Mapping) and list(value)[:1] == ["0"] for value in content.values()):
        return [{column: cells.get(key) for column, cells in content.items()} for key in next(iter(content.values()))]
    return None


def _is_column(values: list[Any]) -> bool:
    """Whether a list is a column of texts or conversations, not a list of rows (of which some may be no objects)."""
    return bool(values) and not any(isinstance(value, Mapping) for value in values)


class _Values:
    """JSON values one after the other out of a stream, of which only the present one is in memory."""

    def __init__(self, name: str, stream: io.TextIOWrapper, begun: str, number: int) -> None:
        self._name, self._stream, self._buffer, self._place = name, stream, begun, 0
        self._lines = number

    def take(self, mark: str) -> bool:
        """Whether the next letter is `mark`, which is then passed."""
        self._skip(" \t\r\n")
        if self._buffer.startswith(mark, self._place):
            self._place += len(mark)
            return True
        return False

    def rest(self) -> bool:
        """Whether anything but space follows."""
        self._skip(" \t\r\n")
        return self._place < len(self._buffer)

    def until(self, end: str) -> Iterator[Any]:
        """Values, separated by commas or space, up to `end` (or the end of the file, where `end` is empty)."""
        while True:
            self._skip(" \t\r\n,")
            if self._place >= len(self._buffer):
                if end:
                    raise self.broken("the list does not end; the file is cut off")
                return
            if end and self._buffer[self._place] == end:
                self._place += 1
                return
            yield self._value()

    def only(self) -> Any:
        """The next value."""
        return next(self.until(""), None)

    def broken(self, why: str, offset: int = 0) -> InputError:
        """The sentence for broken JSON at the present place."""
        line = self._lines + self._buffer.count("\n", 0, self._place + offset)
        return InputError(f"{self._name}:{line} is broken JSON ({why}); mend it, or write one object a line as .jsonl")

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoded()
            except RecursionError as error:
                raise self.broken("nested too deeply") from error
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._buffer) - 16 or error.msg.startswith("Unterminated string")
                if not cut or not self._more():
                    raise self.broken(error.msg, max(0, error.pos - self._place)) from error
            except ValueError as error:
                raise self.broken(f"a number of over {MOST_DIGITS} digits") from error
            else:
                if end < len(self._buffer) or not self._more():
                    if is_damaged(self._buffer[self._place : end]):
                        raise self.broken("not UTF-8; convert it first")
                    self._place = end
                    return value

    def _decoded(self) -> tuple[Any, int]:
        """The value and its end; in place of a value with a key twice, the error that says so."""
        try:
            return JSON.raw_decode(self._buffer, self._place)
        except KeyTwiceError as error:
            return error, json.JSONDecoder().raw_decode(self._buffer, self._place)[1]

    def _skip(self, marks: str) -> None:
        while True:
            while self._place < len(self._buffer) and self._buffer[self._place] in marks:
                self._place += 1
            if self._place < len(self._buffer) or not self._more():
                return

    def _more(self) -> bool:
        """Read on; as much again as is held, so that a long value costs linear time."""
        held = len(self._buffer) - self._place
        if held > LARGEST_OBJECT:
            raise InputError(f"{self._name} holds one JSON value of over 512 MiB; write one object a line as .jsonl")
        block = self._stream.read(max(CHUNK, held))
        self._lines += self._buffer.count("\n", 0, self._place)
        self._buffer, self._place = self._buffer[self._place :] + block, 0
        return bool(block)
