"""Where a run and a model stand, read from the ledger alone."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from lora_select.records.entry import Entry
from lora_select.tracking import names, registry
from lora_select.tracking.store import Store

DECISION = "decision"
AWAITING = "awaiting approval"
REQUESTED = "approval-requested"
APPROVED = "approved"
REJECTED = "rejected"
DEFERRED = "promotion-deferred"
INTENDED = "promotion-intended"
ROLLBACK = "rollback-intended"
REGISTERED = "registered"
PROMOTED = "promoted"
ROLLED_BACK = "rolled-back"
ABANDONED = "abandoned"
FOUND_MOVED = "found-moved"
"""Somebody moved an alias in MLflow by hand; the ledger says what it found."""


@dataclass(frozen=True)
class Standing:
    """The last decision on a run and what became of it: `blocked`, `awaiting approval`, `approved`, `rejected`, `expired`, `promoted`."""

    state: str
    decision: Entry
    last: Entry


def of_run(entries: Iterable[Entry], run: str, *, now: datetime | None = None) -> Standing | None:
    """Where a run's promotion stands, or None where the run has not been judged."""
    decision: Entry | None = None
    last: Entry | None = None
    state = ""
    for entry in entries:
        if entry.run != run:
            continue
        if entry.kind == DECISION:
            decision, last = entry, entry
            state = "" if entry.details.get("passed") else "blocked"
        elif decision is not None and entry.kind in _STATES:
            state, last = _STATES[entry.kind], entry
    if decision is None or last is None:
        return None
    if state == AWAITING and is_over(last, now):
        state = "expired"
    return Standing(state, decision, last)


_STATES = {
    REQUESTED: AWAITING,
    APPROVED: "approved",
    REJECTED: "rejected",
    PROMOTED: "promoted",
}


def unfinished(entries: Sequence[Entry], model: str | None = None) -> list[Entry]:
    """Entries that say what will be moved and that no later entry completes."""
    done = {entry.details["completes"] for entry in entries if "completes" in entry.details}
    return [e for e in entries if "moves" in e.details and e.sequence not in done and model in (None, e.model)]


def aliases(entries: Iterable[Entry], model: str) -> dict[str, str]:
    """Which version each alias of a model points to, as the ledger has it; an alias that was taken off is left out."""
    found: dict[str, str] = {}
    for entry in entries:
        if entry.model == model and entry.kind in (REGISTERED, PROMOTED, ROLLED_BACK, FOUND_MOVED):
            found |= entry.details["aliases"]
    return {alias: version for alias, version in found.items() if version}


def moved(entries: Iterable[Entry], model: str, alias: str) -> list[tuple[Entry, str]]:
    """Every entry that moved an alias, with the version it moved it to."""
    kinds = (REGISTERED, PROMOTED, ROLLED_BACK, FOUND_MOVED)
    return [
        (e, e.details["aliases"][alias])
        for e in entries
        if e.model == model and e.kind in kinds and alias in e.details["aliases"]
    ]


def taken_back(entries: Sequence[Entry], model: str, adapter: str) -> Entry | None:
    """The rollback that took an adapter's version off `champion`, where nothing made it champion again since; who asked and why stands in it.

    Args:
        entries: of the ledger, in order.
        model: the registered model.
        adapter: the adapter's digest, so that another run of the same bytes is answered alike.
    """
    own: set[str] = set()
    holder, found = "", None
    for entry in entries:
        if entry.model == model and entry.details.get("adapter") == adapter and "version" in entry.details:
            own.add(entry.details["version"])
        if entry.model != model or names.CHAMPION not in entry.details.get("aliases", {}):
            continue
        before, holder = holder, entry.details["aliases"][names.CHAMPION]
        if holder in own:
            found = None
        elif entry.kind == ROLLED_BACK and before in own:
            found = next(asked for asked in entries if asked.sequence == entry.details["completes"])
    return found


def unexplained(entries: Sequence[Entry], store: Store) -> list[str]:
    """Where MLflow's champion is not the one that the ledger put there.

    Raises:
        WorldError: MLflow does not answer.
    """
    found = []
    open_models = {entry.model for entry in unfinished(entries)}
    for model in sorted({entry.model for entry in entries if entry.model} - open_models):
        expected = aliases(entries, model).get(names.CHAMPION)
        version = registry.by_alias(store, model)
        there = version.version if version else None
        if there != expected and moved(entries, model, names.CHAMPION):
            found.append(
                f"champion of {model} is {_version(there)} in MLflow and {_version(expected)} in the ledger: it was moved by hand"
            )
    return found


def _version(version: str | None) -> str:
    return f"version {version}" if version else "no version"


def is_over(request: Entry, now: datetime | None = None) -> bool:
    """Whether a request for approval ran out, now or at a given time."""
    until = request.details.get("until")
    return bool(until) and (now or datetime.now(UTC)) > datetime.fromisoformat(until)
