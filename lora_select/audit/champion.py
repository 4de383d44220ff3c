"""The champion as it is now. Whoever reuses a judgement or a promotion asks this first, so that none outlives a moved alias."""

from dataclasses import dataclass
from pathlib import Path

from lora_select.errors import WorldError
from lora_select.records.ledger import Entry
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
    from lora_select.audit import standing
    from lora_select.audit.ledger import in_folder

    found = champion(store, model, adapter_digest)
    judged = standing.of_run(in_folder(runs_folder).entries(), run) if found.standing == ITSELF else None
    before = judged.decision.details["champion"] if judged else None
    version = registry.by_number(store, model, before) if before else None
    return Champion(OTHER, version).rival if version else found.rival


def answered(ledger_entries: list[Entry], run: str) -> str:
    """What a promotion's key holds besides: whether a person's answer came since, so that an old `awaiting approval` is not shown again."""
    from lora_select.audit import standing

    found = standing.of_run(ledger_entries, run)
    return "" if found is None or found.state in ("", "blocked") else found.state


def key_part(store: Store, runs_folder: Path, run: str, model: str, adapter_digest: str) -> str:
    """`holder` and `answered` in one string."""
    from lora_select.audit.ledger import in_folder

    return f"{champion(store, model, adapter_digest).holder} {answered(in_folder(runs_folder).entries(), run)}".strip()
