"""Digests that name work: of this library, of a mapping of inputs, of the files behind a source."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select.records.codec import sha256_file


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text in every process.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value is not JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def key_of(inputs: Mapping[str, Any]) -> str:
    """The name of a piece of work: the first 24 hex digits of the SHA-256 of its canonical inputs."""
    return hashlib.sha256(canonical(inputs).encode()).hexdigest()[:24]


@functools.cache
def library_digest() -> str:
    """SHA-256 over the library's source and data files: an edit anywhere in it makes every cached stage stale."""
    root = Path(__file__).parents[1]
    total = hashlib.sha256()
    for file in sorted(p for p in root.rglob("*") if p.suffix in {".py", ".j2", ".json"}):
        total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes() + b"\0")
    return total.hexdigest()


def is_pattern(source: str) -> bool:
    """Whether a source is a pattern such as `data/*.jsonl`, and no file of that very name."""
    return any(mark in source for mark in "*?[") and not Path(source).expanduser().exists()


def matching(pattern: str) -> list[Path]:
    """The files that a pattern matches (`**` any folders), sorted; no hidden ones."""
    path = Path(pattern).expanduser()
    root = Path(path.anchor) if path.is_absolute() else Path()
    found = root.glob(path.relative_to(root).as_posix() if path.is_absolute() else pattern)
    return sorted(file for file in found if file.is_file() and not file.name.startswith("."))


def source_digest(source: str) -> str:
    """SHA-256 of the bytes behind a dataset source; a source that is no local path (or none) stands for itself.

    File names and their order do not count: the digest is over the sorted digests of the files.
    """
    path = Path(source).expanduser()
    if is_pattern(source):
        files = matching(source)
    elif not source or not path.exists():  # an empty path would be the working directory
        files = []
    else:
        files = [path] if path.is_file() else [p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")]
    if not files:
        return hashlib.sha256(source.encode()).hexdigest()
    return hashlib.sha256("\n".join(sorted(sha256_file(file) for file in files)).encode()).hexdigest()
