"""Registering a dataset: what it is, by content, in a ledger that outlives any server."""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from lora_select.data.files import list_files, source_digest
from lora_select.records import append_line


@dataclass(frozen=True)
class DatasetManifest:
    """A registered dataset: its name, absolute path, digest of its bytes, files and bytes, and when (UTC)."""

    name: str
    path: str
    digest: str
    files: int
    size: int
    registered: str


def register(path: Path, ledger: Path) -> DatasetManifest:
    """Note a dataset in the ledger (one JSON object a line); the same bytes at the same path are noted once.

    Raises:
        InputError: the path is not there or holds no data file.
    """
    path = path.expanduser()
    listed = list_files(path)
    digest = source_digest(str(path))
    for known in read_ledger(ledger):
        if known.digest == digest and known.path == str(path.resolve()):
            return known
    manifest = DatasetManifest(
        name=path.stem,
        path=str(path.resolve()),
        digest=digest,
        files=len(listed),
        size=sum(file.stat().st_size for file in listed),
        registered=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    ledger.parent.mkdir(parents=True, exist_ok=True)
    append_line(ledger, asdict(manifest))
    return manifest


def read_ledger(ledger: Path) -> list[DatasetManifest]:
    """All registrations, oldest first."""
    if not ledger.is_file():
        return []
    lines = ledger.read_text(encoding="utf-8").splitlines()
    return [DatasetManifest(**json.loads(line)) for line in lines if line.strip()]
