"""A person's word on a run: approve, reject, override. Each is entered with a name and a reason, once."""

from dataclasses import dataclass
from pathlib import Path

from lora_select.audit import run_entries
from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import (
    CHAMPION_CHANGED,
    Candidate,
    Office,
    alone,
    carry_out,
    champion_of,
    moves_of,
    recover,
)
from lora_select.audit.alias.standing import Standing
from lora_select.audit.books import anchor, grounds
from lora_select.audit.verification import verify
from lora_select.errors import InputError, WorldError
from lora_select.records.entry import Entry
from lora_select.tracking import names


@dataclass(frozen=True)
class Answer:
    """What a person says: who, why, and whether criteria that are not met are overridden."""

    by: str
    reason: str
    override: bool = False


def approve(office: Office, run: Path, answer: Answer) -> Entry:
    """Make the adapter of a run champion because a person says so; returns the entry of the move.

    An approval of a run whose criteria are not met is an override: it needs `answer.override`, and is entered with the criteria
    that it overrode.

    Raises:
        InputError: no name or reason; the run was never judged, was promoted, approved or rejected before, its time is over, or a
            criterion is not met and no override is asked. The message says what to do.
        WorldError: a file of the run was changed (it is named), MLflow does not answer, or the ledger cannot be written.
    """
    _check(answer)
    folder = run.resolve()
    with alone(office.ledger, _model(office, folder)):
        recover(office, _model(office, folder))
        stands = _answerable(office, folder)
        _check_files(folder)
        unmet = dict(stands.decision.details["criteria"]) | _changed(office, stands)
        if unmet and not answer.override:
            told = "; ".join(unmet.values())
            raise InputError(f"{run} does not meet every criterion: {told}. Train again, or approve with --override")
        if stands.state == "expired" and not answer.override:
            raise InputError(
                f"the time to approve {run} ended at {stands.last.details['until']}; run its command again to be asked again"
            )
        candidate = _candidate(office, folder, stands)
        intent = office.ledger.append(
            standing.APPROVED, by=answer.by, model=candidate.model, run=folder.name, digests=candidate.digests,
            details={
                "reason": answer.reason, "decision": stands.decision.sequence, "override": sorted(unmet),
                "moves": moves_of(office, candidate, {names.CHALLENGER: "", names.CHAMPION: ""}),
            },
        )  # fmt: skip
        return carry_out(office, intent)


def reject(office: Office, run: Path, answer: Answer) -> Entry:
    """Enter that a person does not want a run's adapter; it stays a challenger.

    Raises:
        InputError: as :func:`approve`.
    """
    _check(answer)
    folder = run.resolve()
    with alone(office.ledger, _model(office, folder)):
        recover(office, _model(office, folder))
        stands = _answerable(office, folder)
        entry = office.ledger.append(
            standing.REJECTED, by=answer.by, model=stands.decision.model, run=folder.name, digests=stands.decision.digests,
            details={"reason": answer.reason, "decision": stands.decision.sequence, "version": stands.last.details.get("version", "")},
        )  # fmt: skip
    anchor.push(office.ledger, office.store)
    return entry


def _check(answer: Answer) -> None:
    if not answer.by.strip() or not answer.reason.strip():
        raise InputError("an answer needs a name and a reason: --by NAME --reason TEXT")


def _stands(office: Office, folder: Path) -> Standing:
    found = standing.of_run(office.ledger.entries(), folder.name, now=office.ledger.clock())
    if found is None:
        raise InputError(
            f"{folder} has not been judged, so there is nothing to approve; run its command to the end first"
        )
    return found


def _model(office: Office, folder: Path) -> str:
    return _stands(office, folder).decision.model


def _answerable(office: Office, folder: Path) -> Standing:
    found = _stands(office, folder)
    said = f"(entry {found.last.sequence}, {found.last.by}, {found.last.time[:16]})"
    if found.state in ("approved", "promoted"):
        raise InputError(f"{folder.name} was {found.state} before {said}; `lora-select rollback` takes a champion back")
    if found.state == "rejected":
        raise InputError(f"{folder.name} was rejected before {said}; train again to be asked again")
    return found


def _check_files(folder: Path) -> None:
    found = verify(folder)
    if found.faults:
        raise WorldError(f"{found.faults[0]}; nothing was approved. `lora-select verify {folder}` lists all")


def _changed(office: Office, stands: Standing) -> dict[str, str]:
    """That the champion is another one than the run was compared with."""
    then, now = stands.decision.details["champion"], champion_of(office, stands.decision.model)
    if then == now:
        return {}
    return {CHAMPION_CHANGED: f"the champion is {_version(now)} and was {_version(then)} when the run was judged"}


def _version(version: str | None) -> str:
    return f"version {version}" if version else "none"


def _candidate(office: Office, folder: Path, stands: Standing) -> Candidate:
    name, place = run_entries.served(folder)
    if place is None:
        raise InputError(
            f"{folder} holds no finished adapter ({name}); run the same command again, which makes it anew"
        )
    [promise, *_] = [
        e for e in reversed(office.ledger.of(run=folder.name)) if "mlflow_run" in e.details.get("moves", {})
    ]
    return Candidate(
        model=stands.decision.model,
        run=folder.name,
        folder=place.folder,
        mlflow_run=promise.details["moves"]["mlflow_run"],
        digests=grounds.digests(folder),
        compared_with=stands.decision.details["champion"],
    )
