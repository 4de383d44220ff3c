"""Rows of one file of any kind; a row that cannot be read is a row with a fault, not the end of the file."""

import codecs
import csv
import io
import json
import math
import re
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import IO, Any

from lora_select.data import archives
from lora_select.data.files import SPLITS, DataFile
from lora_select.errors import InputError

LONGEST_LINE = 64 * 2**20
"""Characters; a longer line is counted and passed over, so that no file can fill the memory."""

LARGEST_OBJECT = 512 * 2**20
"""Characters of one JSON value (a whole file, where it is an object) that is read at once."""

CHUNK = 2**18
ARROW_BATCH = 512
MOST_DIGITS = 4300
_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_ESCAPED = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class RawRow:
    """A row as it was found: `line` is the 1-based line (number of the row in JSON lists, Parquet and Arrow).

    `fault` says why it cannot be read; `split` is the split that the file itself names (an object with `train` and `test`).
    """

    file: str
    line: int
    values: Mapping[str, Any]
    fault: str | None = None
    split: str | None = None
    nulls_filled: bool = False
    """Arrow filled the fields of its structs: a null may be no value of the row's."""


def read_rows(file: DataFile) -> Iterator[RawRow]:
    """All rows of one file or archive member, one after the other.

    Raises:
        InputError: the file as a whole cannot be read: damaged, broken JSON, an unknown encoding.
    """
    with archives.opened(file.path, file.member, file.name) as stream:
        try:
            if file.kind in ("parquet", "arrow"):
                yield from _columnar(file, stream)
            else:
                yield from _READERS[file.kind](file.name, _text_stream(stream))
        except UnicodeError as error:
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"{file.name} is in no encoding that is known here ({reason}); convert it to UTF-8"
            ) from error


def _text_stream(stream: IO[bytes]) -> io.TextIOWrapper:
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


def _json_lines(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """JSON lines; a file that is one list, or objects over several lines, is read as that."""
    number, line = _first(stream)
    start = line.strip()
    if (start[:1] == "[" and not _is_other_list(line)) or _is_begun_object(start):
        yield from _json_values(name, stream, line, number)
        return
    if line and not line.endswith(("\n", "\r")):
        line += stream.readline(LONGEST_LINE)
    if start:
        yield _parsed_line(name, number, line)
    yield from _json_rest(name, stream, number)


def _first(stream: io.TextIOWrapper) -> tuple[int, str]:
    """Number and text of the first line that is not empty; of a long one the beginning."""
    number = 1
    while (line := stream.readline(CHUNK)) and not line.strip("\ufeff \t\r\n"):
        number += line.endswith(("\n", "\r"))
    return number, line.lstrip("\ufeff")


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
        values = json.loads(line.lstrip("\ufeff"))
    except RecursionError:
        return RawRow(name, number, {}, "nested too deeply")
    except ValueError as error:
        return RawRow(name, number, {}, _why_no_json(line, error))
    if not isinstance(values, dict):
        return RawRow(name, number, {}, "not a JSON object")
    if is_damaged(line):
        return RawRow(name, number, {}, "not UTF-8")
    return RawRow(name, number, without_nan(values))


def is_damaged(text: str) -> bool:
    """Whether bytes that are no UTF-8 were read into a text."""
    return not text.isascii() and _ESCAPED.search(text) is not None


def _why_no_json(line: str, error: ValueError) -> str:
    if is_damaged(line):
        return "not UTF-8"
    if not isinstance(error, json.JSONDecodeError) and "digits" in str(error):
        return f"a number of over {MOST_DIGITS} digits"
    return "broken JSON"


def without_nan(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with NaN, which pandas writes where a value is missing, as None."""
    if any(isinstance(value, float) and math.isnan(value) for value in values.values()):
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
    return values


def _json(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """A list, an object, or (whatever the suffix says) one object a line."""
    number, line = _first(stream)
    if not _is_object(line):
        yield from _json_values(name, stream, line, number)
        return
    rest = _json_rest(name, stream, number)
    second = next(rest, None)
    if second is None:
        yield from _rows_of(name, json.loads(line))
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
    if not isinstance(value, Mapping):
        return RawRow(name, number, {}, "not a JSON object", split)
    return RawRow(name, number, without_nan(value), None, split)


def _rows_of(name: str, content: Any) -> Iterator[RawRow]:
    """The rows of a file that is one object: itself, a list in it, lists by split, or columns (pandas' two spellings)."""
    if not isinstance(content, Mapping):
        raise InputError(f"{name} must hold a list of rows (or an object with one list), got {type(content).__name__}")
    lists = {key: value for key, value in content.items() if isinstance(value, list)}
    of_objects = {
        key: value for key, value in lists.items() if value and all(isinstance(item, Mapping) for item in value)
    }
    is_row = any({"role", "from"} & set(item) for value in of_objects.values() for item in value)
    if of_objects and not is_row and set(of_objects) <= set(SPLITS):
        for key, value in of_objects.items():
            for number, item in enumerate(value, start=1):
                yield _row(f"{name}:{key}", number, item, SPLITS[key])
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
        self._lines, self._ended = number, False
        self._decoder = json.JSONDecoder()

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

    def broken(self, why: str, offset: int = 0) -> InputError:
        """The sentence for broken JSON at the present place."""
        line = self._lines + self._buffer.count("\n", 0, self._place + offset)
        return InputError(f"{self._name}:{line} is broken JSON ({why}); mend it, or write one object a line as .jsonl")

    def _value(self) -> Any:
        while True:
            try:
                value, end = self._decoder.raw_decode(self._buffer, self._place)
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


def _csv(name: str, stream: io.TextIOWrapper, delimiter: str = "") -> Iterator[RawRow]:
    csv.field_size_limit(LONGEST_LINE)
    header = stream.readline(LONGEST_LINE)
    while header and not header.strip():
        header = stream.readline(LONGEST_LINE)
    mark = delimiter or _delimiter(header)
    reader = csv.reader(_again(header, stream), delimiter=mark, strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{name}:1 is no header of a table ({error}); mend its quotes") from error
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise InputError(f"{name} has the column {twice[0]!r} twice, so one of them would be lost; rename it")
    while True:
        start = reader.line_num + 1
        try:
            cells = next(reader, None)
        except csv.Error as error:
            fault = "a quote that is never closed" if "unexpected end" in str(error) else "broken quotes"
            yield RawRow(name, start, {}, "a cell of over 64 MiB" if "field larger" in str(error) else fault)
            continue
        if cells is None:
            return
        if not cells or (len(cells) == 1 and not cells[0].strip()):
            continue
        yield _csv_row(name, start, columns, cells)


def _csv_row(name: str, start: int, columns: list[str], cells: list[str]) -> RawRow:
    if len(cells) != len(columns):
        return RawRow(name, start, {}, f"{'more' if len(cells) > len(columns) else 'fewer'} cells than columns")
    if any(is_damaged(cell) for cell in cells):
        return RawRow(name, start, {}, "not UTF-8")
    return RawRow(name, start, {column: cell for column, cell in zip(columns, cells, strict=True) if column})


def _delimiter(header: str) -> str:
    counts = {mark: header.count(mark) for mark in ",;\t|"}
    best = max(counts, key=lambda mark: (counts[mark], mark == ","))
    return best if counts[best] else ","


def _again(first: str, stream: io.TextIOWrapper) -> Iterator[str]:
    if first:
        yield first
    yield from stream


def _tsv(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    return _csv(name, stream, "\t")


def _text(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """Paragraphs, separated by empty lines."""
    return _pieces(name, stream, lambda line, _fenced: not line.strip())


def _markdown(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
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


_READERS = {"jsonl": _json_lines, "json": _json, "csv": _csv, "tsv": _tsv, "text": _text, "markdown": _markdown}


def _columnar(file: DataFile, stream: IO[bytes]) -> Iterator[RawRow]:
    """Rows of a Parquet or Arrow file, a batch at a time; inside an archive or compressed it is laid beside first."""
    import pyarrow

    with tempfile.TemporaryFile() as beside:
        seekable: Any = stream
        if file.member is not None or not isinstance(stream, io.BufferedReader) or not stream.seekable():
            while block := stream.read(2**20):
                beside.write(block)
            beside.seek(0)
            seekable = beside
        number = 0
        try:
            batches = _parquet_batches(seekable) if file.kind == "parquet" else _arrow_batches(seekable)
            for batch in batches:
                for start in range(0, batch.num_rows, ARROW_BATCH):
                    for values in batch.slice(start, ARROW_BATCH).to_pylist():
                        number += 1
                        yield RawRow(file.name, number, without_nan(values), nulls_filled=True)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            kind = "Parquet" if file.kind == "parquet" else "Arrow"
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{file.name} is no readable {kind} file: {reason}; write it again") from error


def _parquet_batches(stream: Any) -> Iterator[Any]:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(stream, pre_buffer=False, buffer_size=2**20).iter_batches(batch_size=ARROW_BATCH)


def _arrow_batches(stream: Any) -> Iterator[Any]:
    import pyarrow

    try:
        opened = pyarrow.ipc.open_file(stream)
        return (opened.get_batch(index) for index in range(opened.num_record_batches))
    except pyarrow.ArrowInvalid:
        stream.seek(0)
        return iter(pyarrow.ipc.open_stream(stream))
