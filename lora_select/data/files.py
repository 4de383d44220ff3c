"""Reading rows from files, a folder or the hub, each row with the place it came from."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select.data.formats import without_nulls
from lora_select.errors import InputError

SUFFIXES = (".jsonl", ".json", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class RawRow:
    """A row as it was found: `line` is the 1-based line (row number in Parquet and the hub); `fault` if unreadable."""

    file: str
    line: int
    values: dict[str, Any]
    fault: str | None = None


def list_files(path: Path) -> list[Path]:
    """The data files of a source, sorted by name.

    Raises:
        InputError: the path is not there, is of another kind, or the folder holds no data file.
    """
    if path.is_file():
        if path.suffix.lower() not in SUFFIXES:
            raise InputError(f"{path} is no data file; supported: {', '.join(SUFFIXES)}")
        return [path]
    if not path.is_dir():
        raise InputError(f"`dataset.source` {path} does not exist; name a file, a folder, a hub id, or sample:<name>")
    files = sorted(p for p in path.rglob("*") if p.is_file() and p.suffix.lower() in SUFFIXES)
    if not files:
        raise InputError(f"the folder {path} holds no data file; supported: {', '.join(SUFFIXES)}")
    return files


def read_file(path: Path) -> Iterator[RawRow]:
    """All rows of one file; an unreadable line is a row with a fault, not the end of the file."""
    readers = {".jsonl": _jsonl, ".json": _json, ".csv": _csv, ".parquet": _parquet, ".txt": _text}
    return readers[path.suffix.lower()](path)


def read_hub(source: str, revision: str | None, split: str | None) -> Iterator[RawRow]:
    """Rows of a dataset on the hub; dataset scripts are never run.

    Raises:
        InputError: no such dataset, no access, or no network; or the split has another name.
    """
    import datasets

    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset(source, revision=revision, split=split or "train")
    except Exception as error:  # `datasets` lets a dozen libraries' exceptions through
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"`dataset.source` {source!r} is no file here, and the hub gave no split {split or 'train'!r} of it: {reason}; "
            "name a local file or folder, correct the id, or set `dataset.split`"
        ) from error
    for index, values in enumerate(loaded, start=1):
        yield RawRow(source, index, without_nulls(dict(values)))


def _jsonl(path: Path) -> Iterator[RawRow]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield _parsed_line(path.name, number, line)


def _parsed_line(name: str, number: int, line: bytes) -> RawRow:
    try:
        values = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return RawRow(name, number, {}, "not UTF-8")
    except ValueError:
        return RawRow(name, number, {}, "broken JSON")
    if not isinstance(values, dict):
        return RawRow(name, number, {}, "not a JSON object")
    return RawRow(name, number, values)


def _json(path: Path) -> Iterator[RawRow]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        place = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise InputError(
            f"{path}{place} is broken JSON ({error}); mend it, or write one object a line as .jsonl"
        ) from error
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else content
    if not isinstance(content, list):
        raise InputError(f"{path} must hold a list of rows (or an object with one list), got {type(content).__name__}")
    for number, values in enumerate(content, start=1):
        fault = None if isinstance(values, dict) else "not a JSON object"
        yield RawRow(path.name, number, values if fault is None else {}, fault)


def _csv(path: Path) -> Iterator[RawRow]:
    csv.field_size_limit(2**31 - 1)
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            for values in reader:
                fault = "more cells than columns" if None in values else None
                yield RawRow(path.name, reader.line_num, {k: v for k, v in values.items() if k is not None}, fault)
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8 (byte {error.start}); convert it, for example with iconv") from error


def _parquet(path: Path) -> Iterator[RawRow]:
    import pyarrow
    import pyarrow.parquet

    try:
        source = pyarrow.parquet.ParquetFile(path)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(f"{path} is no readable Parquet file: {' '.join(str(error).split())[:160]}") from error
    number = 0
    for batch in source.iter_batches():
        for values in batch.to_pylist():
            number += 1
            yield RawRow(path.name, number, without_nulls(values))


def _text(path: Path) -> Iterator[RawRow]:
    """Paragraphs, separated by empty lines."""
    lines: list[str] = []
    start = 1
    with path.open(encoding="utf-8-sig", errors="replace") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                start = start if lines else number
                lines.append(line.rstrip("\n"))
            elif lines:
                yield RawRow(path.name, start, {"text": "\n".join(lines)})
                lines = []
    if lines:
        yield RawRow(path.name, start, {"text": "\n".join(lines)})
