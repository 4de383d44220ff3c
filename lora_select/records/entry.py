"""One line of the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Entry:
    """Something that happened: what (`kind`), by whom, when (the machine's clock, UTC), to which model in which run.

    `digests` are SHA-256s of what it rests on (records of the run, library, packages). `previous` is the digest of the entry
    before, `digest` that of this entry without it: an entry cannot be changed, dropped or moved without breaking the chain.
    The order is that of `sequence`; `time` may run backwards when a clock was set.
    """

    sequence: int
    previous: str
    time: str
    kind: str
    by: str
    account: str
    model: str
    run: str
    digests: Mapping[str, str]
    details: Mapping[str, Any]
    digest: str = field(default="")
