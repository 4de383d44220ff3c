"""SIGKILL between any two steps of a promotion, an approval and a rollback: the next start ends where the ledger says it does."""

import os
import shutil
import signal
import traceback
from collections.abc import Callable
from pathlib import Path

import books
import pytest
from books import BLOCKED, MODEL, PASSED

from lora_select.audit import run_entries
from lora_select.audit.alias import approval, standing
from lora_select.audit.alias.approval import Answer
from lora_select.audit.alias.promotion import Office, alone, promote, recover
from lora_select.audit.alias.withdrawal import rollback
from lora_select.audit.books import anchor, chain
from lora_select.audit.books.ledger import Ledger
from lora_select.tracking import registry
from lora_select.tracking.store import prepare

pytestmark = pytest.mark.fault

CALLS = (
    "create_registered_model",
    "log_artifacts",
    "create_model_version",
    "set_model_version_tag",
    "set_registered_model_alias",
    "set_experiment_tag",
    "set_registered_model_tag",
    "log_artifact",
)
"""What changes MLflow; each is a step, and so is every entry of the ledger."""


def at_step(office: Office, number: int, patch: pytest.MonkeyPatch) -> list[int]:
    """Kill this process before its step `number`; returns the steps that were taken (a list that grows)."""
    taken: list[int] = []

    def guarded(real: Callable) -> Callable:
        def step(*args, **arguments):
            if len(taken) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            taken.append(len(taken))
            return real(*args, **arguments)

        return step

    for name in CALLS:
        patch.setattr(office.store.client, name, guarded(getattr(office.store.client, name)))
    patch.setattr(Ledger, "append", guarded(Ledger.append))
    return taken


def promotion(office: Office, root: Path) -> None:
    promote(office, books.candidate(office, root / "r2", "1"), PASSED)


def approving(office: Office, root: Path) -> None:
    approval.approve(office, root / "r2", Answer("Ann", "reads well", override=True))


def rolling_back(office: Office, root: Path) -> None:
    rollback(office, MODEL, by="Ann", reason="rude")


WORDS = {promotion: "a promotion", approving: "an approval", rolling_back: "a rollback"}


def prepared(root: Path, uri: str, deed: Callable) -> None:
    office = books.office(root, prepare(uri, "test"))
    first = books.finished_run(root, "r1")
    promote(office, books.candidate(office, first), PASSED)
    second = books.finished_run(root, "r2", "dora")
    if deed is approving:
        promote(office, books.candidate(office, second, "1"), BLOCKED)
    if deed is rolling_back:
        promote(office, books.candidate(office, second, "1"), PASSED)
    for run in (first, second):
        run_entries.closed(run, model=MODEL)
    anchor.push(office.ledger, office.store)


def recovered(root: Path, uri: str, answer: Path) -> None:
    """The next start: whatever was killed, ledger and registry agree afterwards; writes down who is champion."""
    office = books.office(root, prepare(uri, "test"))
    with alone(office.ledger, MODEL):
        recover(office, MODEL)
    anchor.push(office.ledger, office.store)
    found = chain.check(office.ledger.path)
    assert found.faults == ()
    assert standing.unfinished(found.entries) == []
    assert standing.unexplained(found.entries, office.store) == []
    assert anchor.faults(office.ledger, found.entries, office.store) == []
    completed = [entry.details["completes"] for entry in found.entries if "completes" in entry.details]
    assert len(completed) == len(set(completed)), "a promise was kept twice"
    champion = registry.by_alias(office.store, MODEL)
    assert champion is not None
    answer.write_text(champion.version)


def in_child(work: Callable[[], None]) -> int:
    """Do it in a forked process; returns how that ended."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize(
    ("deed", "was", "becomes"), [(promotion, "1", "2"), (approving, "1", "2"), (rolling_back, "2", "1")]
)
def test_killed_before_every_step(template, tmp_path, outcome, deed, was, becomes):
    place = tmp_path / "before"
    place.mkdir()
    shutil.copy(template, place / "mlflow.db")
    address = f"sqlite:///{place}/mlflow.db"
    assert in_child(lambda: prepared(place / "runs", address, deed)) == 0
    ended: list[str] = []
    kept = tmp_path / "kept"
    place.rename(kept)
    for number in range(40):
        shutil.copytree(kept, place, symlinks=True)  # at the same paths, which MLflow and the ledger hold

        def work(number: int = number) -> None:
            office = books.office(place / "runs", prepare(address, "test"))
            with pytest.MonkeyPatch.context() as patch:
                at_step(office, number, patch)
                deed(office, place / "runs")

        how = in_child(work)
        assert how in (0, -signal.SIGKILL), how
        assert in_child(lambda: recovered(place / "runs", address, tmp_path / "ended")) == 0, number
        ended.append((tmp_path / "ended").read_text())
        shutil.rmtree(place)
        if how == 0:
            break
    else:
        raise AssertionError("more than 40 steps")
    moved = ended.index(becomes)
    assert moved > 0, "before the promise is entered nothing is promised"
    assert ended == [was] * moved + [becomes] * (len(ended) - moved)
    outcome(
        f"SIGKILL before each of the {len(ended) - 1} steps of {WORDS[deed]}",
        "the next start kept what was promised, once",
    )
