"""Records to and from JSON, and files written whole or not at all."""

import dataclasses
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from lora_select.records.files import FileRef

R = TypeVar("R")
EARLIER_NAMES = {"Adapter": {"probe_file": "reference_logits"}}
"""Record type -> name that an earlier version wrote -> present name."""


def to_json(record: Any) -> str:
    """The canonical JSON text of a record: sorted keys, two-space indent, no NaN or infinity, final newline.

    Raises:
        ValueError: a number is NaN or infinite; a record must hold only what was measured.
    """
    return json.dumps(dataclasses.asdict(record), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def from_json(kind: type[R], text: str, *, place: str = "record") -> R:
    """Read a record of type `kind`; `place` names the file in errors.

    Raises:
        ValueError: not JSON, a missing or unknown field, or a value of the wrong type; the message names the field.
    """
    try:
        return TypeAdapter(kind).validate_json(_renamed(kind, text), extra="forbid")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the whole file"
        raise ValueError(
            f"{place} is not a {kind.__name__} record: {where}: {first['msg']}; it was edited or written by another "
            "version, delete the stage's folder to make it again"
        ) from error


def _renamed(kind: type, text: str) -> str:
    """The text with fields that an earlier version wrote under another name under the present one."""
    earlier = EARLIER_NAMES.get(kind.__name__, {})
    if not any(f'"{name}"' in text for name in earlier):
        return text
    fields = json.loads(text)
    return json.dumps({earlier.get(name, name): value for name, value in fields.items()})


def digest(record: Any) -> str:
    """SHA-256 (hex) of the record's canonical JSON."""
    return hashlib.sha256(to_json(record).encode()).hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` so that `path` is either the old file or the whole new one, also after a kill or a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with temporary.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def write_private(path: Path, text: str) -> None:
    """As :func:`write_text`, for a file that only its owner may read (mode 0600)."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.unlink(missing_ok=True)
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def append_line(path: Path, value: Any) -> None:
    """Add one JSON value as the last line, on disk before this returns; NaN and infinity are no JSON.

    Raises:
        ValueError: a number is NaN or infinite.
    """
    line = json.dumps(value, sort_keys=True, ensure_ascii=False, allow_nan=False)
    with path.open("a", encoding="utf-8") as stream:
        stream.write(line + "\n")
        stream.flush()
        os.fsync(stream.fileno())


def whole_lines(path: Path) -> list[str]:
    """The lines that end, none where there is no file; a last one that a kill tore is cut off, so that the next does not join it."""
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        path.write_bytes(whole)
    return whole.decode().splitlines()


def write(path: Path, record: Any) -> None:
    """Write a record's canonical JSON atomically."""
    write_text(path, to_json(record))


def read(kind: type[R], path: Path) -> R:
    """Read a record written by :func:`write`."""
    return from_json(kind, path.read_text(encoding="utf-8"), place=str(path))


def sha256_file(path: Path) -> str:
    """SHA-256 (hex) of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_ref(path: Path, folder: Path) -> FileRef:
    """Name `path` (inside `folder`) by relative path, digest and size."""
    return FileRef(path.relative_to(folder).as_posix(), sha256_file(path), path.stat().st_size)


def finite(value: float, name: str) -> float:
    """Return `value`, or raise naming it: a record never holds NaN or infinity.

    Raises:
        RuntimeError: `value` is not finite.
    """
    if not math.isfinite(value):
        raise RuntimeError(f"{name} is {value}: the measurement diverged")
    return value
