"""Registered datasets in the ledger: the line that they wait in, and whether an event may start a run.

An orchestrator starts runs in an order of its own. So an event says no more than that a run may begin; :func:`take` gives that run
the registration that has waited longest. One that is taken is given to no other run, until it is put back.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lora_select.audit import run_entries
from lora_select.audit.books import chain
from lora_select.audit.books.ledger import Ledger, in_folder, locked
from lora_select.errors import InputError
from lora_select.records.entry import Entry

DATASET = "dataset"
TAKEN = "dataset taken"
PUT_BACK = "dataset put back"


@dataclass(frozen=True)
class Registration:
    """A dataset as it was registered: its absolute path, the digest of its bytes, the number of the entry, the config that trains on it.

    A config of "" is the one of the deployment.
    """

    path: str
    digest: str
    sequence: int
    config: str = ""


def enter(
    runs_folder: Path, path: str, digest: str, *, by: str, details: Mapping[str, object] | None = None
) -> tuple[Entry, bool]:
    """Enter a registration, unless the last one of the path is of the same bytes for the same config (`details["config"]`).

    Returns:
        The entry, and whether it is new.

    Raises:
        WorldError: the ledger cannot be written.
    """
    ledger = in_folder(runs_folder)
    runs_folder.mkdir(parents=True, exist_ok=True)
    with locked(runs_folder / "registrations"):  # between the look and the entry another one may come
        before = [entry for entry in ledger.entries() if entry.kind == DATASET and entry.details["path"] == path]
        told = {"path": path, **(details or {})}
        if (
            before
            and before[-1].digests["dataset"] == digest
            and before[-1].details.get("config") == told.get("config")
        ):
            return before[-1], False
        return ledger.append(DATASET, by=by, digests={"dataset": digest}, details=told), True


def registered(ledger: Ledger) -> list[Registration]:
    """All registrations, oldest first; a later one of the same path takes the place of the one before."""
    latest: dict[str, Registration] = {}
    for entry in ledger.entries():
        if entry.kind == DATASET:
            one = _registration(entry)
            latest.pop(one.path, None)
            latest[one.path] = one
    return list(latest.values())


def pending(runs_folder: Path) -> list[Registration]:
    """Registrations that no finished run has trained on: what a lost event left undone. In the order in which they came."""
    ledger = in_folder(runs_folder)
    done = {
        entry.digests["source.train"]
        for entry in ledger.entries()
        if entry.kind == run_entries.RUN and entry.details.get("ended") and "source.train" in entry.digests
    }
    return [item for item in registered(ledger) if item.digest not in done]


def holders(ledger: Ledger) -> dict[int, str]:
    """The number of each registration that is taken -> who took it."""
    found: dict[int, str] = {}
    for entry in ledger.entries():
        if entry.kind == TAKEN:
            found[entry.details["registration"]] = entry.details["holder"]
        elif entry.kind == PUT_BACK:
            found.pop(entry.details["registration"], None)
    return found


def take(runs_folder: Path, holder: str, path: str, digest: str) -> Registration:
    """The registration that a run is to work on: the oldest that no run has finished or taken. It is entered as taken.

    Args:
        runs_folder: where the ledger is.
        holder: who takes it, such as a flow run's id. Who asks again gets the same one.
        path: of the dataset that the run's event names.
        digest: of its bytes.

    Returns:
        The one that the event names where none waits.

    Raises:
        InputError: the event names what was never registered.
        WorldError: the ledger cannot be written.
    """
    ledger = in_folder(runs_folder)
    entered = [_registration(entry) for entry in ledger.entries() if entry.kind == DATASET]
    named = [one for one in entered if (one.path, one.digest) == (str(Path(path).resolve()), digest)]
    if not named:
        raise InputError(f"an event names {path}, which nobody registered; `lora-select data register` does that")
    with locked(runs_folder / "registrations"):
        held = holders(ledger)
        mine = [one for one in entered if held.get(one.sequence) == holder]
        if mine:
            return mine[-1]
        first = next((item for item in pending(runs_folder) if item.sequence not in held), None)
        if first is None:
            return named[-1]
        told = {"registration": first.sequence, "holder": holder, "path": first.path}
        ledger.append(TAKEN, digests={"dataset": first.digest}, details=told)
        return first


def put_back(runs_folder: Path, number: int, *, by: str, reason: str) -> None:
    """Let a registration that was taken be taken again; nothing happens where it was not.

    Raises:
        WorldError: the ledger cannot be written.
    """
    ledger = in_folder(runs_folder)
    with locked(runs_folder / "registrations"):
        holder = holders(ledger).get(number)
        if holder is not None:
            ledger.append(PUT_BACK, by=by, details={"registration": number, "holder": holder, "reason": reason})


def admit(runs_folder: Path, path: str, digest: str, there: str, allowed: tuple[str, ...] = ()) -> Registration:
    """The registration that an event names, after a look at the ledger and at the bytes: an event alone starts nothing.

    Args:
        runs_folder: where the ledger is.
        path: what the event says the dataset is.
        digest: what the event says its bytes are.
        there: the digest of the bytes that lie there, and that the run will read.
        allowed: folders that datasets may lie in; none given: any.

    Raises:
        InputError: nobody registered it, the ledger was changed, the path is outside the allowed folders, or the bytes are others.
    """
    inside(path, allowed)
    ledger = in_folder(runs_folder)
    found = chain.check(ledger.path)
    if found.faults and ledger.path.is_file():
        raise InputError(f"the ledger {ledger.path} is not whole, so no event is taken: {found.faults[0]}")
    known = [item for item in registered(ledger) if item.path == str(Path(path).resolve())]
    if not known:
        raise InputError(f"an event names {path}, which nobody registered; `lora-select data register` does that")
    if digest not in {item.digest for item in known} or there != digest:
        raise InputError(f"the bytes at {path} are not those of the event; register the dataset again")
    return next(item for item in reversed(known) if item.digest == digest)


def inside(path: str, allowed: tuple[str, ...]) -> Path:
    """The path, links followed, if it lies in one of the allowed folders (none given: any).

    Raises:
        InputError: it does not.
    """
    place = Path(path).resolve()
    if allowed and not any(place.is_relative_to(Path(folder).resolve()) for folder in allowed):
        raise InputError(
            f"{path} is outside the folders that datasets may lie in (`dataset.allowed_folders`: {', '.join(allowed)})"
        )
    return place


def _registration(entry: Entry) -> Registration:
    details = entry.details
    return Registration(
        str(details["path"]), entry.digests["dataset"], entry.sequence, str(details.get("config") or "")
    )
