"""A file that a record names."""

from dataclasses import dataclass


@dataclass(frozen=True)
class FileRef:
    """A file in the stage's folder: relative path, SHA-256 (hex) and size in bytes."""

    path: str
    sha256: str
    size: int
