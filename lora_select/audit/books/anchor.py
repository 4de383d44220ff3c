"""The ledger's head in MLflow, where somebody else may own it: what a chain alone cannot show, its cut end, shows there.

One tag of the experiment for each ledger, `ledger.<id>`, holds the last entry's number and digest. It only ever moves on: where
the file no longer holds the entry that MLflow knows, nothing is sent, so that the evidence stays.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lora_select.audit.books import chain
from lora_select.audit.books.ledger import Ledger
from lora_select.errors import WorldError
from lora_select.records.entry import Entry
from lora_select.tracking import registry
from lora_select.tracking.store import Store, is_outage

PREFIX = "ledger."
ARTIFACT = "ledger"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Head:
    """The last entry that MLflow was told of, and the file it was in."""

    sequence: int
    digest: str
    path: str


def name_of(opening: Entry) -> str:
    """The tag of a ledger, by its first entry."""
    return f"{PREFIX}{opening.digest[:16]}"


def heads(store: Store) -> dict[str, Head]:
    """The heads of all ledgers that MLflow's experiment knows, by tag.

    Raises:
        WorldError: MLflow does not answer.
    """
    found = {}
    for key, value in _tags(store).items():
        if key.startswith(PREFIX):
            try:
                found[key] = Head(**json.loads(value))
            except (ValueError, TypeError):
                found[key] = Head(-1, "", "")
    return found


def faults(ledger: Ledger, entries: tuple[Entry, ...], store: Store) -> list[str]:
    """What MLflow's head says against the file: cut off at the end, replaced, or gone.

    Raises:
        WorldError: MLflow does not answer.
    """
    known = heads(store)
    mine = known.get(name_of(entries[0])) if entries else None
    others = [
        head
        for key, head in known.items()
        if head.path == str(ledger.path.resolve()) and (not entries or key != name_of(entries[0]))
    ]
    found = [f"another ledger was kept here: MLflow knows its entries 0 to {head.sequence}" for head in others]
    if mine is None:
        return found
    if mine.sequence < 0:
        return [*found, f"MLflow's tag {name_of(entries[0])} was edited"]
    at = {entry.sequence: entry for entry in entries}
    last = max(at)
    if mine.sequence > last:
        gone = chain.span(last + 1, mine.sequence)
        return [*found, f"{gone} cut off at the end: MLflow knows entry {mine.sequence}"]
    if mine.sequence in at and at[mine.sequence].digest != mine.digest:
        return [*found, f"entry {mine.sequence} is not the one that MLflow knows: the ledger was written anew"]
    return found


def push(ledger: Ledger, store: Store, *, run_id: str | None = None) -> str | None:
    """Tell MLflow the head, and put the ledger among the artifacts of `run_id`; never raises for a server that is away.

    Returns:
        None when MLflow has it, else why not; the next push sends it.
    """
    try:
        found = chain.check(ledger.path)
        wrong = [*found.faults, *faults(ledger, found.entries, store)]
        if wrong:
            return f"the ledger is not sent to MLflow, because it is not whole: {wrong[0]}"
        if found.head is None:
            return None
        head = {"sequence": found.head.sequence, "digest": found.head.digest, "path": str(ledger.path.resolve())}
        _say(store, name_of(found.entries[0]), head)
        for model in {entry.model for entry in found.entries[-20:] if entry.model}:
            registry.tag_model(store, model, "ledger.head", f"{head['sequence']} {head['digest']}")
        if run_id:
            store.client.log_artifact(run_id, str(ledger.path), ARTIFACT)
    except Exception as error:
        if not (isinstance(error, WorldError) or is_outage(error)):
            raise
        log.warning("MLflow was not told of the ledger's head; the next entry does that (%s)", str(error)[:200])
        return "MLflow does not answer; the ledger's head is sent with the next entry"
    return None


def _tags(store: Store) -> Mapping[str, str]:
    try:
        return store.client.get_experiment(store.experiment_id).tags
    except Exception as error:
        raise WorldError("MLflow does not answer, so the ledger's end cannot be compared with what it knows") from error


def _say(store: Store, key: str, head: Mapping[str, Any]) -> None:
    store.client.set_experiment_tag(store.experiment_id, key, json.dumps(head, sort_keys=True))
