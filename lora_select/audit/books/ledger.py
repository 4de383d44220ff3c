"""The ledger: one JSON object a line, each holding the digest of the line before. Appended to, never rewritten."""

import dataclasses
import fcntl
import getpass
import hashlib
import json
import os
import socket
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lora_select.errors import WorldError
from lora_select.records.digests import canonical
from lora_select.records.entry import Entry

FILE = "ledger.jsonl"
OPENED = "opened"
NOTHING = "0" * 64
POLICY = "policy"
"""Who acts when no person does: the rule of the gate."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Ledger:
    """A ledger at a path; made with the first entry. Several processes may append at once."""

    path: Path
    clock: Any = field(default=_now, compare=False)
    """Returns the time now (an aware datetime)."""

    def append(
        self,
        kind: str,
        *,
        by: str = POLICY,
        model: str = "",
        run: str = "",
        digests: Mapping[str, str] | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Add an entry; it is on disk when this returns, or nothing of it is.

        A last line that a kill tore is cut off first, and the new entry says so.

        Raises:
            WorldError: the ledger cannot be written (disk full, no permission), or its last line is no entry.
        """
        content = {"kind": kind, "by": by, "model": model, "run": run}
        more = {"digests": dict(digests or {}), "details": dict(details or {})}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with locked(self.path), self.path.open("a+b") as stream:
                whole, torn = _split(self.path.read_bytes())
                last = _last(whole, self.path)
                if last is None and kind != OPENED:
                    identity = {"id": uuid.uuid4().hex, "path": str(self.path.resolve())}
                    opening = {"kind": OPENED, "by": POLICY, "model": "", "run": "", "digests": {}, "details": identity}
                    last = self._write(stream, len(whole), opening, None, b"")
                    whole, torn = _split(self.path.read_bytes())
                return self._write(stream, len(whole), content | more, last, torn)
        except OSError as error:
            raise WorldError(
                f"the ledger {self.path} cannot be written ({error.strerror}); nothing is done that it does not hold, mend "
                "that and run the same command again"
            ) from error

    def _write(self, stream: Any, size: int, content: Mapping[str, Any], last: Entry | None, torn: bytes) -> Entry:
        if torn:
            noted = {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}
            content = {**content, "details": {**content["details"], "torn": noted}}
        entry = sealed(
            Entry(
                sequence=last.sequence + 1 if last else 0,
                previous=last.digest if last else NOTHING,
                time=self.clock().isoformat(timespec="milliseconds"),
                account=account(),
                **content,
            )
        )
        line = (to_line(entry) + "\n").encode()
        stream.truncate(size)
        try:
            written = os.write(stream.fileno(), line)
            if written < len(line):
                written += os.write(stream.fileno(), line[written:])
            os.fsync(stream.fileno())
        except OSError:
            with suppress(OSError):
                stream.truncate(size)
            raise
        return entry

    def entries(self) -> list[Entry]:
        """All entries in order, without a look at the chain (see :mod:`lora_select.audit.books.chain`); a torn last line is left out.

        Raises:
            WorldError: a line is no entry.
        """
        if not self.path.is_file():
            return []
        lines = _lines(_split(self.path.read_bytes())[0])
        return [_parse(line, self.path, number) for number, line in enumerate(lines, start=1)]

    def of(self, *, model: str | None = None, run: str | None = None) -> list[Entry]:
        """The entries of a model or a run, in order."""
        return [e for e in self.entries() if (model is None or e.model == model) and (run is None or e.run == run)]


def in_folder(runs: str | Path) -> Ledger:
    """The ledger of a runs folder."""
    return Ledger(Path(runs) / FILE)


def sealed(entry: Entry) -> Entry:
    """The entry with its own digest."""
    return dataclasses.replace(entry, digest=digest_of(entry))


def digest_of(entry: Entry) -> str:
    """SHA-256 of the canonical JSON of an entry without its own digest."""
    values = dataclasses.asdict(entry)
    values.pop("digest")
    return hashlib.sha256(canonical(values).encode()).hexdigest()


def to_line(entry: Entry) -> str:
    """The line of an entry: canonical JSON, so that no other spelling of it is taken."""
    return canonical(dataclasses.asdict(entry))


def from_line(line: str) -> Entry:
    """Read a line.

    Raises:
        ValueError: not JSON, or not an entry.
    """
    values = json.loads(line)
    try:
        return Entry(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error


def account() -> str:
    """The account and the machine that write, as the machine knows them; `by` is what a person said."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file over processes; the kernel lets go when the holder dies."""
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _split(content: bytes) -> tuple[bytes, bytes]:
    """Whole lines, and what follows the last of them."""
    end = content.rfind(b"\n") + 1
    return content[:end], content[end:]


def _lines(whole: bytes) -> list[str]:
    return whole.decode("utf-8", errors="replace").split("\n")[:-1]  # not splitlines: a reason may hold U+2028


def _last(whole: bytes, path: Path) -> Entry | None:
    lines = _lines(whole)
    return _parse(lines[-1], path, len(lines)) if lines else None


def _parse(line: str, path: Path, number: int) -> Entry:
    try:
        return from_line(line)
    except ValueError as error:
        raise WorldError(
            f"line {number} of {path} is no entry; `lora-select ledger verify` says what was done to it"
        ) from error
