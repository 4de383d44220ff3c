"""Digests that name work: of this library, of a mapping of inputs."""

import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=False)


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces: equal values give equal text in every process.

    Raises:
        ValueError: a number is NaN or infinite.
        TypeError: a value is not JSON.
    """
    return _ENCODER.encode(value)


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
