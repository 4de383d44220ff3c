"""What an entry of the ledger rests on: digests of a run's records, of the library and of the installed packages."""

import functools
import hashlib
from importlib import metadata
from pathlib import Path

from lora_select.records import sha256_file
from lora_select.records.digests import library_digest


def digests(run: Path) -> dict[str, str]:
    """SHA-256 of the record of every stage that a run's folder shows, of the library's source and of the names and versions installed."""
    from lora_select.audit import run_entries

    shown = {name: run / f"{name}.json" for name in run_entries.stages(run)}
    found = {name: sha256_file(file) for name, file in shown.items() if file.is_file()}
    return found | {"library": library_digest(), "packages": packages()}


@functools.cache
def packages() -> str:
    """SHA-256 over `name==version` of all installed packages: what a lock pins, as it is here."""
    read = (item.metadata for item in metadata.distributions())  # each access reads the file again
    names = {f"{told['Name']}=={told['Version']}".lower() for told in read if told}
    return hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()
