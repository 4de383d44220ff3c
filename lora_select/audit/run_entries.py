"""Opening and closing a run for the books: what was changed since it ended is named, and its end is sealed and entered."""

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_select.audit import signature
from lora_select.audit.books import grounds, seal
from lora_select.audit.books.ledger import Ledger, in_folder
from lora_select.errors import InputError, WorldError
from lora_select.records import Adapter, read
from lora_select.records.entry import Entry

STAGES = "stages.json"
RECORD = "record.json"
RUN = "run"
SERVED = "served"
CHANGED = "changed"


@dataclass(frozen=True)
class StagePlace:
    """Where a stage of a run was made: its folder, the digest of its record and that of its seal."""

    name: str
    folder: Path
    record: str
    seal: str | None


def stages(run: Path) -> dict[str, StagePlace]:
    """The finished stages of a run by name, from `stages.json`; empty where there is none that can be read."""
    try:
        noted = json.loads((run / STAGES).read_text(encoding="utf-8"))
        root = run.resolve().parent / "stages"
        found = {
            name: StagePlace(name, root / item["stage"] / item["key"], item["record"], item["seal"])
            for name, item in noted.items()
        }
        return found if all(is_below(place.folder, root) for place in found.values()) else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def is_below(path: Path, root: Path) -> bool:
    """Whether a path that a file names stays inside a folder, `..` and links followed."""
    return path.resolve().is_relative_to(root.resolve())


def opened(run: Path) -> list[str]:
    """Look at a run and its stages before they are used or written again: what was changed is named, and what lies in its folder set aside.

    The seal is taken off; :func:`closed` puts it on again. A changed stage is set aside by whoever would use it.
    """
    changed = [f"{fault}; it is not used" for place in stages(run).values() for fault in stage_faults(place)]
    found = seal.faults(run)
    sealed = (run / seal.SEAL).is_file()
    entered = bool(in_folder(run.parent).of(run=run.name)) if run.is_dir() else False
    lines = [f"{fault}; it is written anew" for fault in found]
    if entered and not sealed and _ended(run):
        lines.append(f"{run / seal.SEAL} is gone; it is written anew")
    for fault in found:
        if fault.path.is_file() and not fault.path.is_symlink():
            place = run.parent / CHANGED
            place.mkdir(exist_ok=True)
            shutil.move(fault.path, place / f"{run.name}-{time.time_ns()}-{fault.path.name}")
    (run / seal.SEAL).unlink(missing_ok=True)
    return lines + changed


def closed(run: Path, *, sources: Mapping[str, str] | None = None, model: str = "") -> Entry:
    """Seal a run's folder and enter it: digests of every record, of the library and of what is installed.

    Checkpoints of its trainings go: a finished training is never resumed. The same end is entered once.

    Args:
        run: `runs/<run-key>`.
        sources: digests of the datasets behind the run, by role (`train`, `eval`).
        model: the registered model.

    Raises:
        WorldError: the ledger cannot be written.
    """
    for place in stages(run).values():
        drop_checkpoints(place.folder)
    ledger = in_folder(run.parent)
    digests = grounds.digests(run) | {"seal": seal.write(run)}
    digests |= {f"source.{role}": digest for role, digest in (sources or {}).items()}
    before = [entry for entry in ledger.of(run=run.name) if entry.kind == RUN]
    if before and dict(before[-1].digests) == digests:
        return before[-1]
    return ledger.append(RUN, run=run.name, model=model, digests=digests, details={"ended": _ended(run)})


def drop_checkpoints(folder: Path) -> int:
    """Remove the checkpoints of a finished training and return how many bytes that were."""
    place = folder / seal.DROPPED
    if not place.is_dir() or not (folder / RECORD).is_file():
        return 0
    size = sum(file.stat().st_size for file in place.rglob("*") if file.is_file())
    shutil.rmtree(place)
    return size


def served(run: Path) -> "tuple[str, StagePlace | None]":
    """The name and place of the stage whose adapter is served: what retention left of the trained one, else the trained one itself."""
    known = stages(run)
    name = SERVED if SERVED in known else "adapter"
    return name, known.get(name)


def adapter_folder(run: Path) -> Path:
    """The folder of a run's adapter after every byte of it was compared with the record, the seal and the ledger.

    A plain PEFT folder has no digests, so it is returned as it is. Where a public key is named, the signature is checked too; that of a
    plain folder lies beside it.

    Raises:
        InputError: there is no adapter.
        WorldError: a file is gone, was changed, or was put there since (the message names it), or a signature that is asked for is not
            there or does not hold.
    """
    name, place = served(run)
    if place is None:
        if (run / STAGES).is_file() or (run / "adapter.json").is_file():
            raise InputError(f"{run} holds no finished adapter that can be checked ({STAGES} does not name one)")
        folder = run / "adapter" if (run / "adapter" / "adapter_config.json").is_file() else run
        if not (folder / "adapter_config.json").is_file():
            raise InputError(f"{run} holds no adapter (adapter_config.json); name a run's folder, such as runs/latest")
        signature.require(folder, folder.parent / signature.ADAPTER_SIGNATURE)
        return folder
    found = stage_faults(place)
    entered = [entry for entry in in_folder(run.resolve().parent).of(run=run.resolve().name) if name in entry.digests]
    if not found and entered and entered[-1].digests[name] != place.record:
        found = [f"{place.folder / RECORD} is not the record that the ledger's entry {entered[-1].sequence} holds"]
    if found:
        raise WorldError(f"{found[0]}; it is not used. Run the same command again, which trains it anew")
    folder = place.folder / read(Adapter, place.folder / RECORD).directory
    signature.require(folder, adapter_signature(run))
    return folder


def adapter_signature(run: Path) -> Path:
    """Where the signature of a run's adapter lies, or would: in its evidence stage."""
    place = stages(run).get("evidence")
    return (place.folder if place else run) / signature.ADAPTER_SIGNATURE


def stage_faults(place: StagePlace) -> list[str]:
    """What of a finished stage is not as it was when it ended."""
    if not (place.folder / RECORD).is_file():
        return [f"{place.folder / RECORD} is gone"]
    found = [str(fault) for fault in seal.faults(place.folder)]
    if found:
        return found
    sealed = seal.digest(place.folder)
    if sealed is None:
        return [f"{place.folder / seal.SEAL} is gone"]
    if sealed != place.seal:
        return [f"{place.folder / seal.SEAL} was written anew since the run used it"]
    if seal.sha256(place.folder / RECORD) != place.record:
        return [f"{place.folder / RECORD} was written anew since the run used it"]
    return []


def _ended(run: Path) -> bool:
    return (run / "report.json").is_file()


def ledger_of(run: Path) -> Ledger:
    """The ledger beside a run's folder (`runs/latest` is followed)."""
    return in_folder(run.resolve().parent)
