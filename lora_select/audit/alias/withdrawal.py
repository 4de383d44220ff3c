"""Taking a champion back: the alias moves to an older version after that version's bytes were compared with what was registered."""

import tempfile
from pathlib import Path

from lora_select.audit import run_entries, signature
from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import AwayError, LostBytesError, Office, alone, carry_out, champion_of, recover
from lora_select.errors import InputError, WorldError
from lora_select.records.entry import Entry
from lora_select.tracking import names, registry
from lora_select.tracking.registry import Version


def rollback(office: Office, model: str, *, by: str, reason: str, to: str | None = None) -> Entry:
    """Point `champion` to the version before, or to version `to`; returns the entry of the move.

    Raises:
        InputError: no name or reason; no such version; it is the champion already; or there was no champion before.
        WorldError: the version's files are gone or were changed, MLflow does not answer, or the ledger cannot be written.
    """
    if not by.strip() or not reason.strip():
        raise InputError("a rollback needs a name and a reason: --by NAME --reason TEXT")
    with alone(office.ledger, model):
        recover(office, model)
        now = champion_of(office, model)
        target = _version(office, model, to or _before(office, model, now))
        if target.version == now:
            raise InputError(f"version {now} is the champion of {model} already; nothing was moved")
        check_registered(office, target)
        intent = office.ledger.append(
            standing.ROLLBACK, by=by, model=model, run=_run_of(office, target),
            digests={"adapter.bytes": target.adapter_digest},
            details={
                "reason": reason,
                "moves": {
                    "aliases": {names.CHAMPION: target.version}, "version": target.version, "files": dict(target.files),
                    "adapter": target.adapter_digest, "before": standing.aliases(office.ledger.entries(), model),
                    "mlflow_run": target.run_id,
                },
            },
        )  # fmt: skip
        return carry_out(office, intent)


def check_registered(office: Office, version: Version) -> None:
    """Fetch a version and compare every file with what it was registered as, in the registry and in the ledger.

    Raises:
        LostBytesError: a file is gone or was changed, or the registry's digests are not the ledger's.
    """
    where = f"version {version.version} of {version.name}"
    entered = [
        entry for entry in office.ledger.of(model=version.name)
        if entry.details.get("version") == version.version and "files" in entry.details
    ]  # fmt: skip
    if entered and dict(entered[-1].details["files"]) != dict(version.files):
        raise LostBytesError(
            f"the digests of {where} in MLflow are not those of the ledger's entry {entered[-1].sequence}; nothing was moved"
        )
    if not version.files:
        raise LostBytesError(
            f"{where} was registered without digests, so its files cannot be checked; nothing was moved"
        )
    with tempfile.TemporaryDirectory(prefix="lora-select-") as folder:
        try:
            fetched = registry.download(office.store, version, Path(folder))
            run = office.ledger.path.parent / (_run_of(office, version) or "no run")
            signature.require(fetched, run_entries.adapter_signature(run))
        except WorldError as error:
            raise LostBytesError(
                f"the files of {where} are gone or were changed: {error}; nothing was moved"
            ) from error


def _before(office: Office, model: str, now: str | None) -> str:
    moved = [version for _, version in standing.moved(office.ledger.entries(), model, names.CHAMPION)]
    while moved and moved[-1] in (now, ""):
        moved.pop()
    if not moved:
        raise InputError(
            f"the ledger knows no champion of {model} before {_words(now)}; name a version with --to VERSION"
        )
    return moved[-1]


def _words(version: str | None) -> str:
    return f"version {version}" if version else "now"


def _version(office: Office, model: str, version: str) -> Version:
    try:
        found = registry.by_number(office.store, model, version)
    except WorldError as error:
        raise AwayError(str(error)) from error
    if found is None:
        raise InputError(
            f"{model} has no version {version} in MLflow; `lora-select ledger show {model}` lists what there was"
        )
    return found


def _run_of(office: Office, version: Version) -> str:
    entered = [e for e in office.ledger.of(model=version.name) if e.details.get("version") == version.version and e.run]
    return entered[0].run if entered else ""
