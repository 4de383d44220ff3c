"""From what a user names to rows: files, folders, samples, the hub, or rows that are in memory already."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select.data.reading import samples, source_files
from lora_select.data.reading.raw import RawRow
from lora_select.data.reading.readers import read_rows
from lora_select.data.reading.source_files import DataFile, LeftOut
from lora_select.errors import InputError, require

Source = str | Path | Iterable[Mapping[str, Any]]
Progress = Callable[[int, int, str], None]
"""`(done, total, text)`; done and total in bytes of the files."""

REPORT_EVERY = 2000
HELD_OUT = ("validation", "test")
IN_MEMORY = "in memory"
"""Instead of a digest, for rows that no file holds."""


@dataclass(frozen=True)
class Stream:
    """Rows of one file (or of the hub, or of memory): its name, SHA-256, whether its name holds it out, and its rows."""

    name: str
    sha256: str
    held_out: bool
    rows: Iterable[RawRow]
    size: int = 0


@dataclass(frozen=True)
class Opened:
    """The streams of a source and the files of it that are not read."""

    streams: tuple[Stream, ...]
    left_out: tuple[LeftOut, ...]


def open_source(
    source: Source,
    *,
    revision: str | None,
    split: str | None,
    folder: Path,
    own_eval: bool = False,
    as_eval: bool = False,
) -> Opened:
    """What a source holds.

    Args:
        source: a file, a folder, a pattern, `sample:<name>`, a hub id, or rows.
        revision: of a hub dataset.
        split: of a hub dataset, or of a folder whose files name splits.
        folder: where a sample is written.
        own_eval: the evaluation rows come from elsewhere, so files that are named as held out are left out.
        as_eval: these are the evaluation rows: of files that name splits those that are held out.

    Raises:
        InputError: nothing to read.
    """
    if not isinstance(source, str | Path):
        _check_rows(source)
        typed = hasattr(source, "features")  # a `datasets.Dataset` is Arrow underneath
        rows = (_of_memory(index, values, typed) for index, values in enumerate(source, start=1))
        return Opened((Stream("rows", IN_MEMORY, False, rows),), ())
    text = str(source)
    if text.startswith("sample:"):
        path = samples.write(text.removeprefix("sample:"), folder)
    elif is_local(text):
        path = Path(text)
    else:
        name = f"{text}:{split}" if split else text
        return Opened((Stream(name, f"hub:{revision or 'latest'}", False, read_hub(text, revision, split, name)),), ())
    listing = source_files.list_source(path)
    read, left = _by_split(listing.files, split, text, own_eval=own_eval, as_eval=as_eval)
    digests = source_files.file_digests(read)
    streams = tuple(
        Stream(
            file.name,
            digests[file.path],
            not as_eval and split is None and file.split in HELD_OUT,
            read_rows(file),
            _size(file),
        )
        for file in read
    )
    return Opened(streams, (*listing.left_out, *left))


def _check_rows(source: Any) -> None:
    """Refuse what is in memory and no iterable of rows.

    Raises:
        InputError: says what it is.
    """
    table = not hasattr(source, "features") and (hasattr(source, "to_dict") or hasattr(source, "to_pylist"))
    if table or isinstance(source, bytes | Mapping) or not hasattr(source, "__iter__"):
        more = " (of a pandas table `table.to_dict('records')`)" if table else ""
        more = " (of several splits name one)" if isinstance(source, Mapping) else more
        raise InputError(
            f"the dataset is of the type {type(source).__name__}; give a path, a hub id, or rows, each a mapping of its columns{more}"
        )


def is_local(source: str) -> bool:
    """Whether a source is meant as a path, there or not; else it is a hub id or a sample.

    Raises:
        InputError: it is empty.
    """
    if not source.strip():
        raise InputError("the source of the dataset is empty; name a file, a folder, a hub id, or sample:<name>")
    if source.startswith("sample:"):
        return False
    looks = (
        source.startswith((".", "/", "~"))
        or source.lower().endswith(source_files.SUFFIXES)
        or any(m in source for m in "*?[")
    )
    return looks or source_files.is_there(source)


def check_source(source: str) -> None:
    """Refuse a local source that is not there; a hub id and a sample are looked up only when they are read.

    Raises:
        InputError: there is no such file or folder, or it holds no data file.
    """
    if is_local(source):
        source_files.list_source(source)


def read_hub(source: str, revision: str | None, split: str | None, name: str) -> Iterator[RawRow]:
    """Rows of a dataset on the hub, which the rows call `name`; dataset scripts are never run.

    Raises:
        InputError: no such dataset, no access, or no network; or the split has another name.
    """
    require("datasets", "data", f"`dataset.source` {source!r}, a dataset on the hub,", "name a local file or folder")
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
        yield RawRow(name, index, dict(values), nulls_filled=True)


def counted(streams: Iterable[Stream], progress: Progress | None) -> Iterator[tuple[int, RawRow]]:
    """`(index of the stream, row)` of all rows; `progress` hears of rows a second."""
    listed = list(streams)
    total, done, rows = sum(stream.size for stream in listed), 0, 0
    begun = time.monotonic()
    for index, stream in enumerate(listed):
        for row in stream.rows:
            rows += 1
            yield index, row
            if progress and rows % REPORT_EVERY == 0:
                progress(done, total, f"{rows:,} rows read, {rows / max(1e-9, time.monotonic() - begun):,.0f} a second")
        done += stream.size
        if progress:
            progress(done, total, f"{rows:,} rows read")


def _of_memory(index: int, values: Any, typed: bool) -> RawRow:
    if not isinstance(values, Mapping):
        return RawRow("rows", index, {}, "not a mapping of columns")
    return RawRow("rows", index, {key: _plain(value) for key, value in values.items()}, nulls_filled=typed)


def _plain(value: Any, *, inside: bool = False) -> Any:
    """Arrays and numbers of numpy, which pandas hands out for columns of lists, as Python's own."""
    array = hasattr(value, "tolist")
    value = value.tolist() if array else value
    if not array and not inside:
        return value
    if isinstance(value, Mapping):
        return {key: _plain(item, inside=True) for key, item in value.items()}
    return [_plain(item, inside=True) for item in value] if isinstance(value, list) else value


def _size(file: DataFile) -> int:
    return file.path.stat().st_size


def _by_split(
    listed: tuple[DataFile, ...], split: str | None, source: str, *, own_eval: bool, as_eval: bool
) -> tuple[list[DataFile], list[LeftOut]]:
    """The files to read and those that are left out because of the split that their names say."""
    named = {file.split for file in listed} - {None}
    if split is not None and named:
        wanted = source_files.SPLITS.get(split, split)
        read = [file for file in listed if file.split == wanted]
        if not read:
            raise InputError(
                f"no file of {source} is named as split {split!r}; there are: {', '.join(sorted(map(str, named)))}"
            )
        return read, [LeftOut(file.name, f"not the split {split}") for file in listed if file not in read]
    if as_eval:
        best = next((name for name in HELD_OUT if name in named), None)
        read = [file for file in listed if best is None or file.split == best]
        return read, [LeftOut(file.name, f"not the split {best}") for file in listed if file not in read]
    if named and named <= set(HELD_OUT) and all(file.split for file in listed):
        raise InputError(
            f"every file of {source} is named as held out ({', '.join(sorted(map(str, named)))}), none to train on; "
            "name the file itself as the source to learn it"
        )
    unread = set(HELD_OUT) if own_eval else ({"test"} if "validation" in named else set())
    why = "held out by its name; name it as `dataset.eval_source` to judge on it"
    return [file for file in listed if file.split not in unread], [
        LeftOut(file.name, why) for file in listed if file.split in unread
    ]
