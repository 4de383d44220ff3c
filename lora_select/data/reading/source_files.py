"""Which files a source is: what holds rows, what is held out by its name, and what is left out and why."""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from lora_select.data.reading import archives
from lora_select.data.reading.raw import printable
from lora_select.errors import InputError
from lora_select.records import sha256_file
from lora_select.records.digests import canonical

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
    ".arrow": "arrow",
    ".feather": "arrow",
    ".txt": "text",
    ".md": "markdown",
}
PACKINGS = (".gz", ".bz2", ".xz", ".zst")
SUFFIXES = (*KINDS, *PACKINGS, *archives.SUFFIXES)
METADATA = {
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
    "metadata.json",
    "croissant.json",
    "config.json",
    "package.json",
}
"""JSON files that datasets carry and that hold no rows."""

PROSE = re.compile(
    r"(licen[cs]e|copying|notice|readme|changelog|changes|citation|contributing|authors|requirements|third.?party)",
    re.I,
)
SPLITS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "eval": "validation",
    "evaluation": "validation",
    "test": "test",
    "testing": "test",
    "holdout": "test",
    "heldout": "test",
}
"""Word in a file's or folder's name -> the split it names."""

MARKS = re.compile(r"[*?[]")


@dataclass(frozen=True)
class DataFile:
    """A file that holds rows, or a member of an archive.

    `name` is what findings call it; `kind` is one of the values of `KINDS`; `split` is train, validation, test, or None.
    """

    path: Path
    name: str
    kind: str
    member: str | None = None
    split: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A file below a source that is not read, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Listing:
    """The files of a source, sorted by name, and those that are left out."""

    files: tuple[DataFile, ...]
    left_out: tuple[LeftOut, ...]


def list_source(source: str | Path) -> Listing:
    """The files behind a path: a file, an archive, a folder, or a pattern such as `data/*.jsonl`.

    Hidden files and folders are no data. A text file beside row files is left out, and so are licences and read-me files.

    Raises:
        InputError: nothing there, nothing readable, or a link or archive member that leads outside.
    """
    with _reachable(source):
        return _listed(source)


def _listed(source: str | Path) -> Listing:
    if printable(str(source)) != str(source):
        raise InputError(f"`dataset.source` {printable(str(source))} is no UTF-8; rename it")
    path = Path(source).expanduser()
    if path.is_file():
        return _listing(_of_file(path, path.name, named=True), [], path)
    if path.is_dir():
        return _folder(path)
    if is_pattern(str(source)):
        found = _matching(str(source))
        if found:
            root = Path(os.path.commonpath([str(file.parent) for file in found]))
            return _several(found, root, [], source)
        raise InputError(f"`dataset.source` {source} matches no file; check the pattern")
    if path.exists():
        raise InputError(f"`dataset.source` {source} is a pipe or a device; write its rows to a file first")
    raise InputError(f"`dataset.source` {source} does not exist; name a file, a folder, a hub id, or sample:<name>")


@contextmanager
def _reachable(source: str | Path) -> Iterator[None]:
    """What the system refuses (no permission, a name that is too long) becomes one sentence.

    Raises:
        InputError: names the path.
    """
    try:
        yield
    except OSError as error:
        path = printable(str(error.filename or source))
        path = path if len(path) < 300 else f"{path[:300]}..."
        raise InputError(
            f"`dataset.source` {path} cannot be read ({error.strerror or error}); mend that first"
        ) from error


def is_there(source: str) -> bool:
    """Whether a path can be seen."""
    try:
        return bool(source) and Path(source).expanduser().exists()
    except OSError:  # a name that is too long, a folder that may not be entered
        return False


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern such as `data/*.jsonl`, and no file of that very name."""
    return bool(MARKS.search(source)) and not is_there(source)


def _matching(pattern: str) -> list[Path]:
    """The files that a pattern matches (`**` any folders), sorted; no hidden ones."""
    path = Path(pattern).expanduser()
    root = Path(path.anchor) if path.is_absolute() else Path()
    parts = path.relative_to(root).parts
    with _reachable(pattern):
        _try_folders(root, parts)
        return sorted(file for file in root.glob("/".join(parts)) if file.is_file() and not file.name.startswith("."))


def _try_folders(root: Path, parts: Sequence[str]) -> None:
    """Look into every folder that a pattern leads into: `Path.glob` passes over those that may not be entered.

    Raises:
        PermissionError: one may not.
    """

    def refused(error: OSError) -> None:
        if isinstance(error, PermissionError):
            raise error

    start = next(index for index, part in enumerate(parts) if MARKS.search(part))
    for folder, below, _ in os.walk(root.joinpath(*parts[:start]), onerror=refused):
        if "**" not in parts:
            wanted = parts[len(Path(folder).relative_to(root).parts) : -1]
            below[:] = [name for name in below if wanted and fnmatch(name, wanted[0])]


def source_digest(source: str) -> str:
    """SHA-256 over the files that a source is read from; a source that is no local path (or none) stands for itself.

    Of a file its bytes count and what its name decides: the split, the kind, the member of an archive. Nothing else of a name does,
    and neither does the order. Where a pattern matches no data file, what it matches counts by name and bytes.

    Raises:
        InputError: the path is there and holds no data file.
    """
    matched = _matching(source) if is_pattern(source) else []
    if not matched and not is_there(source):
        return hashlib.sha256(source.encode()).hexdigest()
    if matched and all(_no_rows(file.name) for file in matched):
        return hashlib.sha256(canonical([[file.name, sha256_file(file)] for file in matched]).encode()).hexdigest()
    files = list_source(source).files
    digests = file_digests(files)
    read = sorted([file.split or "", file.kind, file.member or "", digests[file.path]] for file in files)
    return hashlib.sha256(canonical(read).encode()).hexdigest()


def file_digests(files: Iterable[DataFile]) -> dict[Path, str]:
    """SHA-256 of each file on disk.

    Raises:
        InputError: one cannot be read.
    """
    made = {}
    for path in {file.path for file in files}:
        with _reachable(path):
            made[path] = sha256_file(path)
    return made


def list_files(path: Path) -> list[Path]:
    """The files on disk that a source is read from, sorted by path.

    Raises:
        InputError: as `list_source`.
    """
    return sorted({file.path for file in list_source(path).files})


def kind_of(name: str) -> str | None:
    """The kind of a file by its name, compressed or not; None where it is no data file."""
    path = PurePosixPath(name.lower())
    if path.suffix in PACKINGS:
        path = path.with_suffix("")
    return KINDS.get(path.suffix)


def split_of(relative: str) -> str | None:
    """The split that a relative path names: `data/train-00001.parquet` is train, `dev/a.jsonl` validation.

    >>> split_of("data/train-00001-of-2.parquet"), split_of("my_test.jsonl"), split_of("latest.jsonl")
    ('train', 'test', None)
    """
    for part in reversed(PurePosixPath(relative).parts):
        words = re.split(r"[^a-z]+", part.lower().replace("held-out", "heldout").replace("held_out", "heldout"))
        named = [SPLITS[word] for word in words if word in SPLITS]
        if named:
            return "test" if "test" in named else named[0]
    return None


def _folder(root: Path) -> Listing:
    files: list[Path] = []
    left: list[LeftOut] = []
    hidden = 0
    for folder, names, found in os.walk(root, onerror=_raised):
        here = Path(folder)
        seen = [name for name in names if not _is_hidden(name)]
        hidden += len(names) - len(seen) + sum(name.startswith(".") for name in found)
        names[:] = sorted(seen)
        for name in seen:
            if (here / name).is_symlink():
                _refuse_outside(here / name, root)
                left.append(
                    LeftOut(
                        printable((here / name).relative_to(root).as_posix()), "a link to a folder that is read anyway"
                    )
                )
        for file in sorted(here / name for name in found if not name.startswith(".")):
            reason = _no_file(file, root)
            if reason:
                left.append(LeftOut(printable(file.relative_to(root).as_posix()), reason))
            else:
                files.append(file)
    if hidden:
        left.append(LeftOut(f"{hidden} hidden", "hidden files and folders are no data"))
    return _several(sorted(files), root, left, root)


def _raised(error: OSError) -> None:
    """A folder that cannot be listed holds rows, maybe: it is not passed over."""
    raise error


def _no_file(file: Path, root: Path) -> str | None:
    """Why an entry of a folder is no file to read.

    Raises:
        InputError: a link that leaves the folder.
    """
    if not file.exists():
        return "a link that leads nowhere"
    if not file.is_file():
        return "no regular file"
    if file.is_symlink():
        _refuse_outside(file, root)
    return None


def _several(files: Sequence[Path], root: Path, left: list[LeftOut], source: str | Path) -> Listing:
    data: list[DataFile] = []
    for file in files:
        relative = printable(file.relative_to(root).as_posix() if file.is_relative_to(root) else file.name)
        reason = _no_rows(file.name)
        if reason is None:
            data += _of_file(file, relative, named=False)
        else:
            left.append(LeftOut(relative, reason))
    return _listing(data, left, source)


def _of_file(file: Path, relative: str, *, named: bool) -> list[DataFile]:
    """The file, or the members of an archive."""
    if archives.is_archive(file.name):
        made = []
        for member in archives.members(file):
            kind = kind_of(member)
            name = f"{relative}/{member}"
            if kind and _no_rows(member) is None and not _is_hidden(member):
                made.append(
                    DataFile(file, name, kind, member, split_of(member) or (None if named else split_of(relative)))
                )
        twice = [name for name, count in Counter(item.member for item in made).items() if count > 1]
        if twice:
            raise InputError(
                f"{file} holds {twice[0]} twice, so one of them would be lost; unpack it and name the folder"
            )
        if not made and named:
            raise InputError(f"{file} holds no data file; supported inside an archive: {', '.join(KINDS)}")
        return made
    kind = kind_of(file.name)
    if kind is None:
        raise InputError(f"{file} is no data file; supported: {', '.join(SUFFIXES)}{_way_out(file)}")
    return [DataFile(file, relative, kind, None, None if named else split_of(relative))]


def _no_rows(name: str) -> str | None:
    """Why a file of a folder holds no rows by its name, or None."""
    base = PurePosixPath(name).name
    if archives.is_archive(base):
        return None
    if kind_of(base) is None:
        return "no data file"
    if base.lower() in METADATA:
        return "describes the dataset, holds no rows"
    if kind_of(base) in ("text", "markdown") and PROSE.match(PurePosixPath(base).stem):
        return "a licence or read-me file"
    return None


def _listing(data: Iterable[DataFile], left: list[LeftOut], source: str | Path) -> Listing:
    files = list(data)
    if any(file.kind not in ("text", "markdown") for file in files):
        prose = [file for file in files if file.kind in ("text", "markdown")]
        left = [
            *left,
            *(LeftOut(file.name, "plain text beside files of rows; name it by itself to learn it") for file in prose),
        ]
        files = [file for file in files if file not in prose]
    if not files:
        seen = ", ".join(item.name for item in left[:5])
        raise InputError(
            f"the folder {source} holds no data file{f' (left out: {seen})' if seen else ''}; supported: {', '.join(SUFFIXES)}"
        )
    counts = Counter(PurePosixPath(file.name).name for file in files)
    short = [PurePosixPath(file.name).name for file in files]
    files = [
        replace(file, name=name) if counts[name] == 1 and not file.member else file
        for file, name in zip(files, short, strict=True)
    ]
    return Listing(tuple(sorted(files, key=lambda file: file.name)), tuple(sorted(left, key=lambda item: item.name)))


def _refuse_outside(link: Path, root: Path) -> None:
    target, inside = link.resolve(), root.resolve()
    blobs = inside.parent.parent / "blobs"  # the hub's cache keeps snapshots as links into its own folder
    if target.is_relative_to(inside) or target.is_relative_to(blobs):
        return
    raise InputError(
        f"{link} is a link that leaves the folder {root} (to {target}); copy the file into the folder or name it as the source"
    )


def _is_hidden(member: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(member).parts)


def _way_out(file: Path) -> str:
    hints = {
        ".xlsx": "; save the sheet as CSV",
        ".xls": "; save the sheet as CSV",
        ".pkl": "; pickles are never read, write one JSON object a line",
        ".pickle": "; pickles are never read, write one JSON object a line",
        ".pt": "; pickles are never read, write one JSON object a line",
        ".yaml": "; write one JSON object a line",
        ".pdf": "; extract its text first",
        ".docx": "; extract its text first",
        ".7z": "; unpack it first",
        ".rar": "; unpack it first",
    }
    return hints.get(file.suffix.lower(), "")
