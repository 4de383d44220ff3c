"""A dataset's identity: a Merkle tree over its rows, so that two versions can say which rows they do not share.

Leaf b of 256 is the SHA-256 over the sorted row digests that begin with byte b; the root is the SHA-256 over the leaves. Versions
with equal leaves have equal rows there, so only the rows of unequal leaves are compared.
"""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select.records import write_text

LEAVES = 256


@dataclass(frozen=True)
class Difference:
    """Rows that one version has and the other has not, by row digest, in order."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    unchanged: int

    def sentence(self) -> str:
        """`unchanged`, `grown by N rows`, or what was added and removed."""
        if not self.added and not self.removed:
            return "unchanged"
        if not self.removed:
            return f"grown by {_rows(len(self.added))}"
        if not self.added:
            return f"{_rows(len(self.removed))} fewer"
        return f"{_rows(len(self.added))} added, {len(self.removed)} removed, {self.unchanged} unchanged"


def _rows(count: int) -> str:
    return f"{count} row{'s' * (count != 1)}"


class Leaves:
    """Leaves of rows that come sorted by digest."""

    def __init__(self) -> None:
        self._hashes = [hashlib.sha256() for _ in range(LEAVES)]

    def add(self, row_id: str) -> None:
        """Take the next row's digest (64 hex digits)."""
        digest = bytes.fromhex(row_id)
        self._hashes[digest[0]].update(digest)

    def hex(self) -> list[str]:
        """The leaves."""
        return [leaf.hexdigest() for leaf in self._hashes]


def root(leaves: Iterable[Sequence[str]]) -> str:
    """SHA-256 over the leaves of every split, in order."""
    total = hashlib.sha256()
    for split in leaves:
        total.update(b"split\0" + bytes.fromhex("".join(split)))
    return total.hexdigest()


def write(path: Path, leaves: dict[str, list[str]]) -> None:
    """Keep the leaves of each split as JSON."""
    write_text(path, json.dumps(leaves, sort_keys=True) + "\n")


def difference(old: Path, new: Path) -> Difference:
    """What the dataset in folder `new` adds to and lacks of the one in `old`, whatever split a row is in.

    Args:
        old: folder with `places.parquet` and `identity.json`, as intake writes them.
        new: the same, of the newer version.
    """
    import pyarrow.compute

    compute: Any = pyarrow.compute

    before, after = _row_ids(old), _row_ids(new)
    if not unequal_leaves(old, new):
        return Difference((), (), len(after))
    added = after.filter(compute.invert(compute.is_in(after, value_set=before))).to_pylist()
    removed = before.filter(compute.invert(compute.is_in(before, value_set=after))).to_pylist()
    return Difference(tuple(sorted(added)), tuple(sorted(removed)), len(after) - len(added))


def unequal_leaves(old: Path, new: Path) -> tuple[int, ...]:
    """First bytes of the row digests under which two versions differ; empty means equal rows in equal splits."""
    one, other = (json.loads((folder / "identity.json").read_text(encoding="utf-8")) for folder in (old, new))
    return tuple(
        leaf for leaf in range(LEAVES) if any(one[split][leaf] != other[split][leaf] for split in ("train", "eval"))
    )


def _row_ids(folder: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(folder / "places.parquet", columns=["row_id"]).column("row_id")
