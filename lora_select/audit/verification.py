"""Every file of a run against its records, its seals and the ledger."""

from dataclasses import dataclass
from pathlib import Path

from lora_select.audit import run_entries, signature
from lora_select.audit.alias import standing
from lora_select.audit.books import anchor, chain, seal
from lora_select.audit.books.ledger import Ledger
from lora_select.errors import InputError, WorldError
from lora_select.records import Adapter, Decision, Evaluation, ReloadCheck, read, sha256_file
from lora_select.tracking.store import Store


@dataclass(frozen=True)
class Verification:
    """`files` that were read, `faults` (each names a file or an entry), and `notes` on what could not be compared."""

    run: str
    files: int
    faults: tuple[str, ...]
    notes: tuple[str, ...]


def verify(run: Path, store: Store | None = None) -> Verification:
    """Compare every file of a run with its seals, every record with the ledger, the ledger with itself and with MLflow.

    Args:
        run: a run's folder, such as `runs/latest`.
        store: MLflow's, which holds the ledger's head; None leaves the ledger's end unchecked, and a note says so.

    Raises:
        InputError: the folder is no run, or the public key that asks for signatures cannot be used.
    """
    folder = run.resolve()
    ledger = run_entries.ledger_of(run)
    found = chain.check(ledger.path)
    entered = [entry for entry in found.entries if entry.run == folder.name and entry.kind == run_entries.RUN]
    places = run_entries.stages(folder)
    if not places and not entered:
        raise InputError(f"{run} is no run's folder (no {run_entries.STAGES}); name one, such as runs/latest")
    faults = [] if places else [f"{folder / run_entries.STAGES} is gone or was changed"]
    notes = list(found.notes)
    files = 0
    if (folder / seal.SEAL).is_file():
        faults += [str(fault) for fault in seal.faults(folder)]
    elif entered:
        faults.append(f"{folder / seal.SEAL} is gone (a run that goes on now has none)")
    else:
        notes.append("the run has not ended, so its own folder is not sealed yet")
    files += sum(1 for _ in seal.listing(folder))
    for place in places.values():
        faults += run_entries.stage_faults(place)
        files += sum(1 for _ in seal.listing(place.folder)) if place.folder.is_dir() else 0
        shown = folder / f"{place.name}.json"
        if shown.is_file() and sha256_file(shown) != place.record:
            faults.append(f"{shown} is not the record of its stage")
    if entered:
        faults += _against(folder, dict(entered[-1].digests), entered[-1].sequence)
    elif (folder / seal.SEAL).is_file():
        faults.append(f"{ledger.path} holds no entry of this run")
    faults += found.faults if ledger.path.is_file() else [f"{ledger.path} is gone"] if entered else []
    if not faults:
        faults += _together(folder) or _signed(folder)
    if store is None:
        notes.append("the ledger's end was not compared with MLflow")
    else:
        faults += _with_mlflow(ledger, found, store)
    return Verification(folder.name, files, tuple(dict.fromkeys(faults)), tuple(notes))


def _signed(folder: Path) -> list[str]:
    """What is wrong with the signature of the served adapter, where a public key asks for one."""
    _, place = run_entries.served(folder)
    if place is None:
        return []
    try:
        adapter = place.folder / read(Adapter, place.folder / run_entries.RECORD).directory
        signature.require(adapter, run_entries.adapter_signature(folder))
    except WorldError as error:
        return [str(error)]
    return []


def _with_mlflow(ledger: Ledger, found: chain.Chain, store: Store) -> list[str]:
    """What MLflow says otherwise; that it does not answer is one too, since nothing was compared."""
    try:
        return [*anchor.faults(ledger, found.entries, store), *standing.unexplained(found.entries, store)]
    except WorldError as error:
        return [f"MLflow was not asked: {error} (--offline does without)"]


def _against(folder: Path, digests: dict[str, str], sequence: int) -> list[str]:
    """What the ledger says of the run's records and of its seal."""
    found = []
    for name, expected in digests.items():
        file = folder / f"{name}.json"
        if name == "seal":
            if seal.digest(folder) not in (None, expected):
                found.append(f"{folder / seal.SEAL} is not the seal that the ledger's entry {sequence} holds")
        elif name not in ("library", "packages") and not name.startswith("source."):
            if not file.is_file():
                found.append(f"{file} is gone, the ledger's entry {sequence} holds it")
            elif sha256_file(file) != expected:
                found.append(f"{file} is not the record that the ledger's entry {sequence} holds")
    return found


def _together(folder: Path) -> list[str]:
    """Whether the records speak of one another: the adapter that was proven, judged and chosen is the one that is there."""
    files = {
        name: folder / f"{name}.json"
        for name in ("profile", "spectra", "decision", "adapter", "proof", "served", "served-proof", "evaluation")
    }
    held = {name: path for name, path in files.items() if path.is_file()}
    found = []
    try:
        for kept, proof in (("adapter", "proof"), ("served", "served-proof")):
            if not {kept, proof} <= held.keys():
                continue
            if read(ReloadCheck, held[proof]).adapter_digest != read(Adapter, held[kept]).digest:
                found.append(f"{held[proof]} is the proof of another adapter")
        if "adapter" in held:
            adapter = read(Adapter, held["adapter"])
            served = read(Adapter, held["served"]) if "served" in held else adapter
            if "evaluation" in held and read(Evaluation, held["evaluation"]).adapter_digest != served.digest:
                found.append(f"{held['evaluation']} judges another adapter")
        if {"decision", "profile", "spectra"} <= held.keys():
            decision = read(Decision, held["decision"])
            rests = {"profile": decision.profile_digest, "spectra": decision.spectra_digest}
            found += [
                f"{held['decision']} rests on another {name}"
                for name, value in rests.items()
                if sha256_file(held[name]) != value
            ]
    except ValueError as error:
        found.append(str(error))
    return found
