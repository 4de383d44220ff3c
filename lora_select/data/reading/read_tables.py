"""Rows of tables: CSV and TSV, Parquet and Arrow."""

import csv
import io
import tempfile
from collections.abc import Iterator
from typing import IO, Any

from lora_select.data.reading.raw import LONGEST_LINE, RawRow, is_damaged
from lora_select.data.reading.source_files import DataFile
from lora_select.errors import InputError

ARROW_BATCH = 512
"""Rows that are turned into Python's values at once."""


def csv_rows(name: str, stream: io.TextIOWrapper, delimiter: str = "") -> Iterator[RawRow]:
    """Rows of a table with a header; the delimiter is the commonest of the header's, where none is given.

    Raises:
        InputError: the header is broken, or names a column twice.
    """
    csv.field_size_limit(LONGEST_LINE)
    header, before = stream.readline(LONGEST_LINE), 0
    while header and not header.strip():
        header, before = stream.readline(LONGEST_LINE), before + 1
    mark = delimiter or _delimiter(header)
    reader = csv.reader(_again(header, stream), delimiter=mark, strict=True)
    try:
        columns = [column.strip() for column in next(reader, [])]
    except csv.Error as error:
        raise InputError(f"{name}:{before + 1} is no header of a table ({error}); mend its quotes") from error
    _check_columns(name, columns)
    while True:
        start = before + reader.line_num + 1
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


def _check_columns(name: str, columns: list[str]) -> None:
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        raise InputError(f"{name} has the column {twice[0]!r} twice, so one of them would be lost; rename it")


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


def tsv_rows(name: str, stream: io.TextIOWrapper) -> Iterator[RawRow]:
    """The same, with tabs."""
    return csv_rows(name, stream, "\t")


def columnar(file: DataFile, stream: IO[bytes]) -> Iterator[RawRow]:
    """Rows of a Parquet or Arrow file, a batch at a time; inside an archive or compressed it is laid beside first.

    Raises:
        InputError: the file is damaged.
    """
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
                _check_columns(file.name, batch.schema.names)
                for start in range(0, batch.num_rows, ARROW_BATCH):
                    for values in _values(batch.slice(start, ARROW_BATCH)):
                        number += 1
                        if isinstance(values, str):
                            yield RawRow(file.name, number, {}, values)
                        else:
                            yield RawRow(file.name, number, values, nulls_filled=True)
        except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
            kind = "Parquet" if file.kind == "parquet" else "Arrow"
            reason = " ".join(str(error).split())[:160]
            raise InputError(f"{file.name} is no readable {kind} file: {reason}; write it again") from error


def _values(batch: Any) -> Iterator[Any]:
    """The rows of a batch as dicts; for one that Python cannot hold (a date out of its range, text that is no UTF-8), why."""
    try:
        yield from batch.to_pylist()
    except Exception:  # whatever the type of a cell raises
        for index in range(batch.num_rows):
            try:
                yield batch.slice(index, 1).to_pylist()[0]
            except UnicodeDecodeError:
                yield "not UTF-8"
            except Exception as error:
                yield f"a cell that cannot be read ({' '.join(str(error).split())[:80]})"


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
