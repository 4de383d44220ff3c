"""What an entry of the ledger rests on: digests of a run's records, of the library and of the installed packages."""

import functools
import hashlib
from importlib import metadata
from pathlib import Path

from lora_select.records import sha256_file
from lora_select.records.digests import library_digest

RECORDS = (
    "dataset",
    "gate",
    "profile",
    "spectra",
    "race",
    "decision",
    "plan",
    "adapter",
    "proof",
    "retention",
    "served",
    "served-proof",
    "evaluation",
    "promotion",
    "report",
)


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of every record that a run's folder holds, of the library's source and of the names and versions installed."""
    found = {name: sha256_file(run / f"{name}.json") for name in RECORDS if (run / f"{name}.json").is_file()}
    return found | {"library": library_digest(), "packages": packages()}


@functools.cache
def packages() -> str:
    """SHA-256 over `name==version` of all installed packages: what a lock pins, as it is here."""
    names = {f"{item.metadata['Name']}=={item.version}".lower() for item in metadata.distributions() if item.metadata}
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
