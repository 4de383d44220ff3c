"""Whether a ledger is whole: an edited, dropped, moved or truncated entry is named."""

import itertools
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lora_select.audit.books.ledger import NOTHING, OPENED, digest_of, from_line, to_line
from lora_select.records.entry import Entry


@dataclass(frozen=True)
class Chain:
    """What was found: `entries` that can be read, `faults` (somebody changed the file), `notes` (a kill, a clock)."""

    entries: tuple[Entry, ...]
    faults: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def head(self) -> Entry | None:
        """The last entry."""
        return self.entries[-1] if self.entries else None


def check(path: Path) -> Chain:
    """Read a ledger line by line and check each entry's own digest, its place and its link to the one before."""
    if not path.is_file():
        return Chain((), (f"{path} is not there",), ())
    *lines, torn = path.read_bytes().split(b"\n")
    entries: list[Entry] = []
    faults: list[str] = []
    notes: list[str] = []
    if torn:
        notes.append(
            f"line {len(lines) + 1} is torn ({len(torn)} bytes, a writer was killed); the next entry cuts it off"
        )
    for number, line in enumerate(lines, start=1):
        try:
            entry = from_line(line.decode())
        except (ValueError, UnicodeDecodeError):
            faults.append(f"line {number} was edited: it is no entry")
            continue
        if digest_of(entry) != entry.digest or to_line(entry).encode() != line:
            faults.append(f"entry {entry.sequence} (line {number}) was edited: its digest is not that of its content")
        entries.append(entry)
    faults += _order(entries)
    for before, after in itertools.pairwise(entries):
        if _moment(after) < _moment(before):
            notes.append(
                f"entry {after.sequence} has an earlier time than entry {before.sequence}: the clock was set back"
            )
    return Chain(tuple(entries), tuple(faults), tuple(notes))


def _order(entries: list[Entry]) -> list[str]:
    faults: list[str] = []
    expected, previous = 0, NOTHING
    numbers = [entry.sequence for entry in entries]
    for entry in entries:
        if entry.sequence != expected:
            faults += _displaced(entry.sequence, expected, numbers)
        elif entry.previous != previous:
            faults.append(
                f"entry {entry.sequence} does not follow from entry {entry.sequence - 1}: one of the two was replaced"
            )
        expected, previous = entry.sequence + 1, entry.digest
    if entries and entries[0].sequence == 0 and entries[0].kind != OPENED:
        faults.append("entry 0 does not open a ledger")
    return faults


def _displaced(found: int, expected: int, numbers: list[int]) -> list[str]:
    if found < expected:
        return [f"entry {found} is out of order: it comes after entry {expected - 1}"]
    gone = [number for number in range(expected, found) if number not in numbers]
    moved = [number for number in range(expected, found) if number in numbers]
    faults = [f"{span(gone[0], gone[-1])} dropped"] if gone else []
    return faults + [f"entry {number} is out of order: it does not come before entry {found}" for number in moved]


def span(first: int, last: int) -> str:
    """`entry 3 was` or `entries 3 to 5 were`."""
    return f"entry {first} was" if first == last else f"entries {first} to {last} were"


def _moment(entry: Entry) -> datetime:
    try:
        return datetime.fromisoformat(entry.time)
    except ValueError:
        return datetime.min.replace(tzinfo=datetime.now().astimezone().tzinfo)
