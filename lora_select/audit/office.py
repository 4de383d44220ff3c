"""Finding the ledger and the MLflow store that belong to a run or to a model."""

import os
from pathlib import Path

from lora_select.address import HIDDEN, default_uri
from lora_select.audit.alias.promotion import Office
from lora_select.audit.books.ledger import Ledger, in_folder
from lora_select.errors import InputError
from lora_select.tracking import store as stores
from lora_select.tracking.store import Store
from lora_select.tracking.tracker import read_notes


def of_run(run: Path, uri: str | None = None) -> Office:
    """The ledger beside a run's folder, and the MLflow store that the run noted.

    Args:
        run: a run's folder.
        uri: another address of the same store.

    Raises:
        InputError: the run was never tracked, or its store's password is hidden and `MLFLOW_TRACKING_URI` is not set.
        WorldError: the store does not answer.
    """
    folder = run.resolve()
    return Office(in_folder(folder.parent), _store(folder, uri))


def of_model(runs_folder: Path, model: str, uri: str | None = None) -> Office:
    """The ledger of a runs folder, and the store of the last run of `model` that it names.

    Raises:
        InputError: the ledger knows no such model.
        WorldError: the store does not answer.
    """
    ledger = in_folder(runs_folder)
    known = ledger.of(model=model)
    if not known:
        names = sorted({entry.model for entry in ledger.entries() if entry.model})
        more = f"; it knows {', '.join(names)}" if names else ""
        raise InputError(f"the ledger {ledger.path} knows no model {model!r}{more}")
    return Office(ledger, any_store(ledger, uri, [entry.run for entry in reversed(known) if entry.run]))


def any_store(ledger: Ledger, uri: str | None = None, runs: list[str] | None = None) -> Store:
    """The store of the newest of these runs (none given: of all in the ledger) whose folder is still there.

    Raises:
        InputError: no run's folder says where MLflow is.
        WorldError: the store does not answer.
    """
    names = runs if runs is not None else [entry.run for entry in reversed(ledger.entries()) if entry.run]
    for name in dict.fromkeys(names):
        if read_notes(ledger.path.parent / name):
            return _store(ledger.path.parent / name, uri)
    if uri or os.environ.get("MLFLOW_TRACKING_URI"):
        return stores.prepare(uri or default_uri())
    raise InputError("no run's folder says where MLflow is; name it with --tracking-uri")


def tracked(ledger: Ledger) -> bool:
    """Whether any run of the ledger says where its MLflow is."""
    return any(read_notes(ledger.path.parent / run) for run in {entry.run for entry in ledger.entries()} if run)


def _store(folder: Path, uri: str | None) -> Store:
    notes = read_notes(folder)
    if not notes:
        raise InputError(
            f"{folder} has no tracking.json, so where its MLflow is is not known; name a run's folder, such as runs/latest"
        )
    address = uri or notes["uri"]
    if f":{HIDDEN}@" in address:
        address = os.environ.get("MLFLOW_TRACKING_URI", address)
    return stores.reopen(address, notes["experiment_id"])
