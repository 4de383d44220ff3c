"""Rows sorted by digest in bounded memory: laid into 128 buckets by the first bits of the digest, then bucket by bucket.

Digests are uniform, so buckets are of like size, and a bucket holds each distinct row once while it is sorted.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

BUCKETS = 128
HELD_BYTES = 24 * 2**20
"""What is held in memory over all buckets before it is written."""

PER_ROW = 400
"""Bytes that a row costs beside its text, about."""


@dataclass(frozen=True)
class SpilledRow:
    """A canonical row on its way: digests as hex, `messages` and `tools` as canonical JSON, `file` as a number."""

    row_id: str
    prompt_id: str
    file: int
    line: int
    held_out: int
    messages: str
    tools: str


class Digests(Sequence[str]):
    """SHA-256 digests in 32 bytes each, read as hex."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def append(self, digest: str) -> None:
        """Add a digest of 64 hex digits."""
        self._bytes += bytes.fromhex(digest)

    def keys(self) -> "NDArray[numpy.uint64]":
        """The first 8 bytes of each: equal for equal digests, and for others as good as never."""
        import numpy as np

        return np.frombuffer(self._bytes, ">u8").reshape(-1, 4)[:, 0].astype(np.uint64)

    def __len__(self) -> int:
        return len(self._bytes) // 32

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        place = int(index) % len(self) * 32
        return self._bytes[place : place + 32].hex()


class Buckets:
    """Takes rows in any order and gives them back sorted by digest, copies beside one another by file and line."""

    def __init__(self, folder: Path) -> None:
        """Args: folder: for what does not fit into memory; the caller removes it."""
        self._folder = folder
        self._held: list[list[tuple]] = [[] for _ in range(BUCKETS)]
        self._bytes = 0
        self.rows = 0

    def add(self, row: SpilledRow) -> None:
        """Take one row."""
        bucket = int(row.row_id[:2], 16) * BUCKETS // 256
        self._held[bucket].append(
            (row.row_id, row.file, row.line, row.prompt_id, row.held_out, row.messages, row.tools)
        )
        self._bytes += len(row.messages) + len(row.tools) + PER_ROW
        self.rows += 1
        if self._bytes > HELD_BYTES:
            self._flush()

    def sorted(self) -> Iterator[list[SpilledRow]]:
        """For each distinct digest, in order, its copies (of all but the first without their text)."""
        for bucket in range(BUCKETS):
            copies: dict[str, list[tuple]] = {}
            for row in self._bucket(bucket):
                known = copies.setdefault(row[0], [])
                if known:  # one text for all copies: the first in the alphabet, where they differ in the order of keys
                    text = min(known[0][5:], row[5:])
                    known[0] = (*known[0][:5], *text)
                    row = (*row[:5], "", "")
                known.append(row)
            for row_id in sorted(copies):
                found = copies[row_id]
                messages, tools = found[0][5:]
                ordered = sorted(found, key=lambda row: (row[4], row[1], row[2]))
                yield [SpilledRow(row[0], row[3], row[1], row[2], row[4], messages, tools) for row in ordered]

    def _bucket(self, bucket: int) -> Iterator[tuple]:
        file = self._file(bucket)
        if file.is_file():
            with file.open(encoding="ascii") as stream:
                for block in stream:
                    yield from (tuple(row) for row in json.loads(block))
            file.unlink()
        yield from self._held[bucket]
        self._held[bucket] = []

    def _flush(self) -> None:
        for bucket, rows in enumerate(self._held):
            if rows:
                with self._file(bucket).open("a", encoding="ascii") as stream:
                    stream.write(json.dumps(rows) + "\n")
                self._held[bucket] = []
        self._bytes = 0

    def _file(self, bucket: int) -> Path:
        return self._folder / f"bucket-{bucket:03d}"
