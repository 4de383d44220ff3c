"""From a judged adapter to an alias: what will be done is entered before it is done, so that a kill leaves nothing unexplained.

An entry with `moves` is a promise: register this adapter, point these aliases. :func:`carry_out` keeps it, and every step of it may
be done twice. :func:`recover` keeps what a killed process had promised, or says why not.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from lora_select.audit.alias import standing
from lora_select.audit.books import anchor, seal
from lora_select.audit.books.ledger import POLICY, Ledger, locked
from lora_select.audit.run_entries import is_below
from lora_select.errors import WorldError
from lora_select.records import Adapter, Promotion, read
from lora_select.records.entry import Entry
from lora_select.tracking import names, registry
from lora_select.tracking.store import Store

AWAITING = standing.AWAITING
DEFERRED = "deferred"
RECORD = "record.json"
CHAMPION_CHANGED = "champion-changed"
TAKEN_BACK = "taken-back"


@dataclass(frozen=True)
class Candidate:
    """A trained adapter of a run, on its way to the registry.

    `folder` is the training stage's folder with its record and seal, `mlflow_run` the run that holds its artifacts, `digests` what
    the judgement rests on, `compared_with` the champion's version that it was measured against (None: there was none).
    """

    model: str
    run: str
    folder: Path
    mlflow_run: str
    digests: Mapping[str, str]
    compared_with: str | None


@dataclass(frozen=True)
class Judgement:
    """What the gate says: whether every criterion is met, those that are not (name -> sentence), and the reasons in words."""

    passed: bool
    criteria: Mapping[str, str]
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Office:
    """Where promotions are made: the ledger and the registry."""

    ledger: Ledger
    store: Store


def promote(
    office: Office,
    candidate: Candidate,
    judgement: Judgement,
    *,
    approval: Literal["none", "required"] = "none",
    approval_days: float = 14.0,
) -> Promotion:
    """Enter the decision and do what it says: champion, challenger, or `awaiting approval`.

    The champion is looked up afresh under a lock. Where it is not the one that the adapter was compared with, the adapter stays
    a challenger; so does one that a person took back, until a person approves it. Where MLflow is away, nothing is moved and the
    promotion is `deferred`: the same command promotes later.

    Raises:
        WorldError: the ledger cannot be written, or a file of the adapter was changed (it is named).
    """
    check_bytes(candidate.folder)
    with alone(office.ledger, candidate.model):
        try:
            recover(office, candidate.model)
            rival, itself = _rival(office, candidate)
        except AwayError as error:
            return _deferred(office, candidate, judgement, str(error))
        if itself:
            return Promotion(
                candidate.model,
                rival or _own(office, candidate),
                names.CHAMPION,
                None,
                (*judgement.reasons, "it is the champion already"),
            )
        if answer := _answered(office, candidate, approval):
            return answer
        judgement = _not_taken_back(office, _still_valid(judgement, candidate, rival), candidate)
        decision = _decide(office, candidate, judgement, rival)
        waits = judgement.passed and approval == "required"
        aliases = {names.CHALLENGER: ""} | ({names.CHAMPION: ""} if judgement.passed and not waits else {})
        moves = moves_of(office, candidate, aliases)
        intent = office.ledger.append(
            standing.INTENDED, model=candidate.model, run=candidate.run, digests=candidate.digests,
            details={"moves": moves, "decision": decision.sequence, "reasons": list(judgement.reasons)},
        )  # fmt: skip
        try:
            done = carry_out(office, intent)
        except AwayError as error:
            return _deferred(office, candidate, judgement, str(error), rival)
        version = done.details["version"]
        if waits:
            return Promotion(
                candidate.model,
                version,
                AWAITING,
                rival,
                _request(office, candidate, judgement, approval_days, version),
            )
        alias = names.CHAMPION if judgement.passed else names.CHALLENGER
        return Promotion(candidate.model, version, alias, rival, judgement.reasons)


class AwayError(WorldError):
    """MLflow does not answer or refuses; what was promised stays promised."""


def moves_of(office: Office, candidate: Candidate, aliases: Mapping[str, str]) -> dict[str, Any]:
    """What is promised: which adapter becomes which alias. A version of "" is the one that the registration gives."""
    adapter = read(Adapter, candidate.folder / RECORD)
    return {
        "aliases": dict(aliases),
        "folder": os.path.relpath(candidate.folder.resolve(), office.ledger.path.parent.resolve()),
        "mlflow_run": candidate.mlflow_run,
        "adapter": adapter.digest,
        "seal": seal.digest(candidate.folder),
        "before": standing.aliases(office.ledger.entries(), candidate.model),
    }


def carry_out(office: Office, intent: Entry) -> Entry:
    """Keep what an entry promises, and enter that it was done. Doing it again changes nothing.

    Raises:
        AwayError: MLflow does not answer; the promise stands.
    """
    moves = intent.details["moves"]
    try:
        version, files = _registered(office, intent)
        aliases = {alias: given or version for alias, given in moves["aliases"].items()}
        tags = _tags(intent)
        before = {
            alias: registry.set_alias(office.store, intent.model, target, alias, tags=tags)
            for alias, target in aliases.items()
        }
    except WorldError as error:
        if isinstance(error, LostBytesError):
            raise
        raise AwayError(str(error)) from error
    champion = names.CHAMPION in aliases
    kind = (
        standing.ROLLED_BACK
        if intent.kind == standing.ROLLBACK
        else standing.PROMOTED
        if champion
        else standing.REGISTERED
    )
    was = {alias: old for alias, old in before.items() if old and old != aliases[alias]}
    done = office.ledger.append(
        kind, by=intent.by, model=intent.model, run=intent.run, digests=intent.digests,
        details={
            "completes": intent.sequence, "version": version, "aliases": aliases, "before": was, "files": files, "adapter": moves["adapter"],
        },
    )  # fmt: skip
    anchor.push(office.ledger, office.store, run_id=moves.get("mlflow_run"))
    return done


def recover(office: Office, model: str) -> list[Entry]:
    """Bring a model to a state that the ledger explains; call it with the model's lock held.

    What a killed process had promised is done now, unless the alias has moved on since or the adapter's bytes are not what they
    were: then it is entered as abandoned. An alias that somebody moved in MLflow by hand is entered as found there.

    Raises:
        AwayError: MLflow does not answer.
    """
    made = []
    for intent in standing.unfinished(office.ledger.entries(), model):
        reason = _cannot(office, intent)
        if reason:
            details = {"completes": intent.sequence, "reason": reason}
            made.append(office.ledger.append(standing.ABANDONED, model=model, run=intent.run, details=details))
        else:
            made.append(carry_out(office, intent))
    known = standing.aliases(office.ledger.entries(), model)
    there = champion_of(office, model)
    if there != known.get(names.CHAMPION):
        found = {"aliases": {names.CHAMPION: there or ""}, "before": {names.CHAMPION: known.get(names.CHAMPION, "")}}
        made.append(office.ledger.append(standing.FOUND_MOVED, by="unknown", model=model, details=found))
    return made


@contextmanager
def alone(ledger: Ledger, model: str) -> Iterator[None]:
    """Hold a model's lock: one promotion, approval or rollback at a time; the kernel lets go when the holder dies."""
    ledger.path.parent.mkdir(parents=True, exist_ok=True)
    name = hashlib.sha256(model.encode()).hexdigest()[:16]
    with locked(ledger.path.with_name(f"model-{name}")):
        yield


class LostBytesError(WorldError):
    """An adapter's files are gone or are not what they were."""


def check_bytes(folder: Path) -> None:
    """See that a training stage's folder is what it was when the stage ended.

    Raises:
        LostBytesError: a file is gone, was changed, or was put there since.
    """
    if not (folder / RECORD).is_file() or not (folder / seal.SEAL).is_file():
        raise LostBytesError(f"{folder / RECORD} or its seal is gone; nothing was promoted")
    if found := seal.faults(folder):
        raise LostBytesError(f"{found[0]}; nothing was promoted. Run the same command again, which trains it anew")


def champion_of(office: Office, model: str) -> str | None:
    """The champion's version now.

    Raises:
        AwayError: MLflow does not answer.
    """
    try:
        found = registry.by_alias(office.store, model)
    except WorldError as error:
        raise AwayError(str(error)) from error
    return found.version if found else None


def _registered(office: Office, intent: Entry) -> tuple[str, Mapping[str, str]]:
    moves = intent.details["moves"]
    if "folder" not in moves:  # a version that is there already
        return moves["version"], moves["files"]
    folder = _folder(office, moves)
    check_bytes(folder)
    if seal.digest(folder) != moves["seal"]:
        raise LostBytesError(f"{folder} was made anew since entry {intent.sequence}; nothing was promoted")
    adapter = read(Adapter, folder / RECORD)
    version = registry.register(office.store, intent.model, moves["mlflow_run"], adapter, folder)
    return version.version, version.files


def _folder(office: Office, moves: Mapping[str, Any]) -> Path:
    """The training stage's folder that a promise names."""
    root = office.ledger.path.parent
    folder = root / moves["folder"]
    if not is_below(folder, root):
        raise LostBytesError(f"the ledger names {folder}, which is outside {root}; nothing was promoted")
    return folder


def _tags(intent: Entry) -> dict[str, str]:
    digests = {
        "evaluation.sha256": intent.digests.get("evaluation", ""),
        "ledger.entry": f"{intent.sequence} {intent.digest}",
    }
    reasons = intent.details.get("reasons") or [intent.details.get("reason", "")]
    return digests | {"gate.reasons": " ".join(reasons)[:5000], "promoted.by": intent.by}


def _cannot(office: Office, intent: Entry) -> str | None:
    """Why a promise of a killed process is not kept any more."""
    moves = intent.details["moves"]
    now = champion_of(office, intent.model)
    if names.CHAMPION in moves["aliases"] and now != moves["before"].get(names.CHAMPION):
        target = moves["aliases"][names.CHAMPION] or _version_of(office, intent.model, moves["adapter"])
        if now != target:
            return f"the champion is version {now} now, and was {moves['before'].get(names.CHAMPION) or 'none'} when this was promised"
    if "folder" in moves:
        try:
            check_bytes(_folder(office, moves))
        except LostBytesError as error:
            return str(error)
        if seal.digest(_folder(office, moves)) != moves["seal"]:
            return "the adapter was trained anew since"
    return None


def _version_of(office: Office, model: str, adapter_digest: str) -> str | None:
    try:
        found = registry.find(office.store, model, adapter_digest)
    except Exception as error:
        raise AwayError(f"MLflow does not answer ({type(error).__name__})") from error
    return found.version if found else None


def _rival(office: Office, candidate: Candidate) -> tuple[str | None, bool]:
    """The champion that the candidate must beat, and whether the candidate itself is the champion."""
    try:
        champion = registry.by_alias(office.store, candidate.model)
    except WorldError as error:
        raise AwayError(str(error)) from error
    itself = champion is not None and champion.adapter_digest == read(Adapter, candidate.folder / RECORD).digest
    return (None if champion is None or itself else champion.version), itself


def _still_valid(judgement: Judgement, candidate: Candidate, rival: str | None) -> Judgement:
    if rival == candidate.compared_with or rival is None:
        return judgement
    compared = f"version {candidate.compared_with}" if candidate.compared_with else "none"
    sentence = f"the champion is version {rival}, it was compared with {compared}; run the same command again"
    return Judgement(False, {**judgement.criteria, CHAMPION_CHANGED: sentence}, (*judgement.reasons, sentence))


def _not_taken_back(office: Office, judgement: Judgement, candidate: Candidate) -> Judgement:
    """What a person took back is no champion again because a command is given again."""
    adapter = read(Adapter, candidate.folder / RECORD).digest
    back = standing.taken_back(office.ledger.entries(), candidate.model, adapter)
    if back is None:
        return judgement
    sentence = (
        f"{back.by} took this adapter back on {back.time[:10]}: {back.details['reason']}; a person may approve it again: "
        f"`lora-select approve {office.ledger.path.parent / candidate.run} --by NAME --reason TEXT --override`"
    )
    return Judgement(False, {**judgement.criteria, TAKEN_BACK: sentence}, (*judgement.reasons, sentence))


def _own(office: Office, candidate: Candidate) -> str:
    champion = champion_of(office, candidate.model)
    assert champion is not None  # looked up under the same lock
    return champion


def _answered(office: Office, candidate: Candidate, approval: str) -> Promotion | None:
    """What a person said of this very evaluation, or is still asked: it is neither asked nor decided again."""
    found = standing.of_run(office.ledger.entries(), candidate.run, now=office.ledger.clock())
    if (
        found is None
        or approval != "required"
        or found.decision.digests.get("evaluation") != candidate.digests.get("evaluation")
    ):
        return None
    version = str(found.last.details.get("version", ""))
    if found.state == standing.AWAITING:
        asked = how_to_answer(office, candidate.run, found.last.details["until"])
        return Promotion(candidate.model, version, AWAITING, found.decision.details["champion"], (asked,))
    if found.state == standing.REJECTED:
        said = f"{found.last.by} rejected it on {found.last.time[:10]}: {found.last.details['reason']}"
        return Promotion(candidate.model, version, standing.REJECTED, found.decision.details["champion"], (said,))
    return None


def how_to_answer(office: Office, run: str, until: str) -> str:
    """The commands with which a person answers."""
    return f"it waits for a person until {until}: `lora-select approve {office.ledger.path.parent / run} --by NAME --reason TEXT`"


def _decide(office: Office, candidate: Candidate, judgement: Judgement, rival: str | None) -> Entry:
    details = {
        "passed": judgement.passed,
        "criteria": dict(judgement.criteria),
        "reasons": list(judgement.reasons),
        "champion": rival,
    }
    before = [e for e in office.ledger.of(run=candidate.run) if e.kind == standing.DECISION]
    if before and dict(before[-1].details) == details and dict(before[-1].digests) == dict(candidate.digests):
        return before[-1]
    return office.ledger.append(
        standing.DECISION, model=candidate.model, run=candidate.run, digests=candidate.digests, details=details
    )


def _request(office: Office, candidate: Candidate, judgement: Judgement, days: float, version: str) -> tuple[str, ...]:
    until = (office.ledger.clock() + timedelta(days=days)).isoformat(timespec="seconds")
    office.ledger.append(
        standing.REQUESTED, model=candidate.model, run=candidate.run, digests=candidate.digests,
        details={"until": until, "version": version},
    )  # fmt: skip
    anchor.push(office.ledger, office.store, run_id=candidate.mlflow_run)
    return (*judgement.reasons, how_to_answer(office, candidate.run, until))


def _deferred(
    office: Office, candidate: Candidate, judgement: Judgement, why: str, rival: str | None = None
) -> Promotion:
    office.ledger.append(
        standing.DEFERRED,
        by=POLICY,
        model=candidate.model,
        run=candidate.run,
        digests=candidate.digests,
        details={"reason": why},
    )
    return Promotion(candidate.model, "", DEFERRED, rival, (*judgement.reasons, f"the promotion is deferred: {why}"))
