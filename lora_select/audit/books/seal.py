"""A seal: the SHA-256 of every file in a finished folder, kept beside them, so that an edit of any is seen and named.

A seal tells an edit by accident or by one careless hand. Whoever rewrites a file *and* its seal is seen by the ledger, which
holds the seal's digest, and whoever rewrites the ledger by its head in MLflow.
"""

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_select.records import sha256_file, write_text
from lora_select.records.digests import canonical

SEAL = "seal.json"
VOLATILE = frozenset({SEAL, "shipped.json", "outbox.jsonl", "refused.jsonl", "head"})
"""Notes on what MLflow has acknowledged, and the file that says a launcher lives: they go on changing, and nothing is decided by them."""
DROPPED = "checkpoints"
"""A folder that goes when its run has ended; each checkpoint has a manifest of its own, which a resume checks."""
RACY_NS = 2_000_000_000
"""A file changed in the last two seconds is always read again: a second change may leave the same time stamp."""


@dataclass(frozen=True)
class Fault:
    """A file that is not what it was sealed as: `path` (absolute or relative to the working directory) and what happened to it."""

    path: Path
    what: str

    def __str__(self) -> str:
        return f"{self.path} {self.what}"


def write(folder: Path, expected: Mapping[str, str] | None = None) -> str:
    """Seal every file below `folder` and return the seal's own digest.

    Args:
        folder: what is finished.
        expected: texts by relative path of files that will be written next (a record, which is written last).
    """
    files = {path: entry_of(folder / path) for path in listing(folder)}
    files |= {path: hashlib.sha256(text.encode()).hexdigest() for path, text in (expected or {}).items()}
    content = {"files": files, "seal": digest_of_files(files)}
    write_text(folder / SEAL, json.dumps(content, sort_keys=True, indent=1) + "\n")
    return content["seal"]


def faults(folder: Path) -> list[Fault]:
    """What is not as sealed: changed, gone or put there since; empty for an intact folder and for one that was never sealed."""
    held = read(folder)
    if held is None:
        return []
    if isinstance(held, Fault):
        return [held]
    there = set(listing(folder))
    found = []
    for path, expected in sorted(held.items()):
        if path not in there:
            found.append(Fault(folder / path, "is gone"))
        elif entry_of(folder / path) != expected:
            found.append(Fault(folder / path, "was changed since it was made"))
    found += [Fault(folder / path, "was put there since") for path in sorted(there - held.keys())]
    return found


def digest(folder: Path) -> str | None:
    """The digest of a folder's seal (of what it lists), or None where there is none that can be read."""
    held = read(folder)
    return digest_of_files(held) if isinstance(held, Mapping) else None


def read(folder: Path) -> Mapping[str, str] | Fault | None:
    """What the seal lists: SHA-256 by relative path; a fault where the seal itself was edited; None where there is no seal."""
    place = folder / SEAL
    try:
        content = json.loads(place.read_bytes())
        files = content["files"]
        if content["seal"] == digest_of_files(files) and content.keys() == {"files", "seal"}:
            return files
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError):
        pass
    return Fault(place, "was changed since it was made")


def digest_of_files(files: Mapping[str, str]) -> str:
    """SHA-256 of a list of files and their digests."""
    return hashlib.sha256(canonical(dict(files)).encode()).hexdigest()


def listing(folder: Path) -> Iterator[str]:
    """Relative paths of what a seal covers: all but hidden files, locks, checkpoints and notes that go on changing."""
    for parent, folders, names in os.walk(folder):
        if Path(parent) == folder and DROPPED in folders:
            folders.remove(DROPPED)
        links = [name for name in folders if (Path(parent) / name).is_symlink()]
        for name in (*names, *links):
            if not (name.startswith(".") or name.endswith(".lock") or name in VOLATILE):
                yield (Path(parent) / name).relative_to(folder).as_posix()


def entry_of(path: Path) -> str:
    """A file's SHA-256; a link stands for where it points."""
    if path.is_symlink():
        return f"-> {path.readlink()}"
    return sha256(path)


def sha256(path: Path) -> str:
    """SHA-256 of a file, remembered in this process as long as the file's inode, size and both time stamps stay.

    The change time cannot be set by a program, so a restored modification time does not hide a change.
    """
    state = path.stat()
    if time.time_ns() - state.st_ctime_ns < RACY_NS:
        return sha256_file(path)
    return _remembered(path, state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns)


@functools.lru_cache(maxsize=4096)
def _remembered(path: Path, *_state: int) -> str:
    return sha256_file(path)
