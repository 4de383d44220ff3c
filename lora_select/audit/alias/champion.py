"""The champion as it is now. Whoever reuses a judgement or a promotion asks this first, so that none outlives a moved alias."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from lora_select.audit.alias import standing
from lora_select.audit.alias.standing import Standing
from lora_select.audit.books.ledger import in_folder
from lora_select.errors import WorldError
from lora_select.records.entry import Entry
from lora_select.tracking import registry
from lora_select.tracking.registry import Version
from lora_select.tracking.store import Store

NONE = "none"
ITSELF = "itself"
OTHER = "other"
AWAY = "away"


@dataclass(frozen=True)
class Champion:
    """Who holds the alias: nobody, the adapter that asks (`itself`), another version, or MLflow is `away` and nobody knows."""

    standing: str
    version: Version | None = None
    why: str = ""

    @property
    def rival(self) -> str:
        """What an evaluation's key holds: the version that it is measured against ("" for none), so that another one is another evaluation."""
        if self.standing == OTHER and self.version is not None:
            return f"{self.version.version} {self.version.adapter_digest}"
        return AWAY if self.standing == AWAY else ""

    @property
    def holder(self) -> str:
        """What a promotion's key holds: as `rival`, and whether the adapter is the champion already."""
        return self.rival or self.standing


def champion(store: Store, model: str, adapter_digest: str) -> Champion:
    """Ask the registry. A server that is away is an answer, no error: the adapter is then judged without the champion."""
    try:
        found = registry.by_alias(store, model)
    except WorldError as error:
        return Champion(AWAY, None, str(error))
    if found is None:
        return Champion(NONE)
    return Champion(ITSELF if found.adapter_digest == adapter_digest else OTHER, found)


def rival_of(store: Store, runs_folder: Path, run: str, model: str, adapter_digest: str) -> str:
    """`rival` for an evaluation's key. Of an adapter that is champion by now it is whom it was judged against, so that its judgement stays."""
    found = champion(store, model, adapter_digest)
    return _judged_against(store, found, standing.of_run(in_folder(runs_folder).entries(), run), model).rival


def key_part(store: Store, runs_folder: Path, run: str, model: str, adapter_digest: str) -> str:
    """Who is champion and what came of the run since, for a promotion's key.

    The promotion's own success does not count, so that the same command finds it as it was made. A champion that was taken back counts.
    """
    entries = in_folder(runs_folder).entries()
    found, stands = champion(store, model, adapter_digest), standing.of_run(entries, run)
    back = standing.taken_back(entries, model, adapter_digest)
    moved = f"taken back {back.sequence}" if back else ""
    if back is None and stands is not None and stands.state == "promoted":
        moved = "" if found.standing == ITSELF else f"promoted {stands.last.sequence}"
        found = _judged_against(store, found, stands, model)
    return " ".join(filter(None, (found.holder, answered(entries, run), moved)))


def answered(entries: Iterable[Entry], run: str, *, now: datetime | None = None) -> str:
    """What came of a run but by its own promotion: a person's answer, an outage, a request that ran out, by the number of its entry.

    So neither an old `awaiting approval` nor an old `deferred` is shown again after an answer, a second expiry, or another outage.
    """
    said = ""
    for entry in entries:
        if entry.run == run and entry.kind in (standing.APPROVED, standing.REJECTED, standing.DEFERRED):
            said = f"{entry.kind} {entry.sequence}"
        elif entry.run == run and entry.kind == standing.REQUESTED and standing.is_over(entry, now):
            said = f"expired {entry.sequence}"
    return said


def _judged_against(store: Store, found: Champion, stands: Standing | None, model: str) -> Champion:
    """The champion; of an adapter that is champion itself, the one that it was judged against."""
    if found.standing != ITSELF or stands is None:
        return found
    before = stands.decision.details["champion"]
    try:
        version = registry.by_number(store, model, before) if before else None
    except WorldError as error:
        return Champion(AWAY, None, str(error))
    return Champion(OTHER, version) if version else Champion(NONE)
