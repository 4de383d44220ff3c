"""A person's word on an adapter that waits: given once, with a name and a reason, on what was judged, in time."""

import dataclasses
import multiprocessing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import books
import pytest
from books import BLOCKED, PASSED, champion, finish, in_order, kinds

from lora_select.audit.alias import approval, standing
from lora_select.audit.alias.approval import Answer
from lora_select.audit.alias.promotion import AWAITING, Office, promote
from lora_select.errors import InputError, WorldError
from lora_select.tracking.store import prepare

ANN = Answer("Ann", "reads well")


def test_it_waits_for_a_person_and_goes_on(office, root):
    run, made = finish(office, root, approval="required")
    assert (made.alias, made.version, champion(office)) == (AWAITING, "1", None)
    again = promote(office, books.candidate(office, run), PASSED, approval="required")
    assert again.alias == AWAITING
    assert kinds(office).count("approval-requested") == 1
    entry = approval.approve(office, run, ANN)
    assert (entry.kind, entry.by, champion(office)) == ("promoted", "Ann", "1")
    approved = next(e for e in office.ledger.entries() if e.kind == "approved")
    assert (approved.details["reason"], approved.details["override"]) == ("reads well", [])
    in_order(office)
    for second in (approval.approve, approval.reject):
        with pytest.raises(InputError, match=r"was promoted before"):
            second(office, run, ANN)


def test_a_rejection_is_final(office, root):
    run, _ = finish(office, root, approval="required")
    approval.reject(office, run, Answer("Bob", "rude"))
    with pytest.raises(InputError, match=r"was rejected before \(entry \d+, Bob"):
        approval.approve(office, run, ANN)
    made = promote(office, books.candidate(office, run), PASSED, approval="required")
    assert (made.alias, champion(office)) == ("rejected", None)
    assert "Bob rejected it" in made.reasons[0]
    in_order(office)


def test_an_override_needs_the_word_and_is_entered_with_what_it_overrode(office, root):
    run, _ = finish(office, root, judgement=BLOCKED)
    with pytest.raises(InputError, match=r"held-out loss does not beat .*--override"):
        approval.approve(office, run, ANN)
    approval.approve(office, run, dataclasses.replace(ANN, override=True))
    approved = next(e for e in office.ledger.entries() if e.kind == "approved")
    assert approved.details["override"] == ["loss"]
    assert champion(office) == "1"


def test_another_champion_since_is_a_criterion_too(office, root):
    run, _ = finish(office, root, approval="required")
    finish(office, root, "r2", "dora")
    assert champion(office) == "2"
    with pytest.raises(InputError, match="the champion is version 2 and was none"):
        approval.approve(office, run, ANN)
    approval.approve(office, run, dataclasses.replace(ANN, override=True))
    assert champion(office) == "1"


@pytest.mark.parametrize("answer", [Answer("", "x"), Answer("Ann", " ")])
def test_an_answer_has_a_name_and_a_reason(office, root, answer):
    run, _ = finish(office, root, approval="required")
    for say in (approval.approve, approval.reject):
        with pytest.raises(InputError, match="needs a name and a reason"):
            say(office, run, answer)


def test_what_was_not_judged_is_not_approved(office, root):
    with pytest.raises(InputError, match="has not been judged"):
        approval.approve(office, books.finished_run(root), ANN)


def test_a_run_that_was_edited_while_it_waited_is_not_approved(office, root):
    run, _ = finish(office, root, approval="required")
    path = run / "evaluation.json"
    path.write_text(path.read_text().replace("0.9", "0.1", 1))
    with pytest.raises(WorldError, match=r"evaluation.json was changed"):
        approval.approve(office, run, ANN)
    assert champion(office) is None


def test_time_runs_out_and_a_clock_set_back_does_not_end_it(office, root):
    run, _ = finish(office, root, approval="required", approval_days=2)
    early = dataclasses.replace(office.ledger, clock=lambda: datetime.now(UTC) - timedelta(days=9))
    late = dataclasses.replace(office.ledger, clock=lambda: datetime.now(UTC) + timedelta(days=3))
    found = standing.of_run(early.entries(), "r1", now=early.clock())
    assert found is not None
    assert found.state == AWAITING
    with pytest.raises(InputError, match="the time to approve .* ended"):
        approval.approve(Office(late, office.store), run, ANN)
    made = promote(Office(late, office.store), books.candidate(office, run), PASSED, approval="required")
    assert made.alias == AWAITING
    assert kinds(office).count("approval-requested") == 2


def _approve(root: Path, uri: str, run: Path, name: str) -> None:
    try:
        approval.approve(books.office(root, prepare(uri, "test")), run, Answer(name, "at once"))
    except InputError:
        raise SystemExit(7) from None


@pytest.mark.fault
def test_approval_given_twice_at_once_counts_once(office, root, outcome):
    run, _ = finish(office, root, approval="required")
    context = multiprocessing.get_context("spawn")
    people = [context.Process(target=_approve, args=(root, office.store.uri, run, name)) for name in ("Ann", "Bob")]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert sorted(person.exitcode or 0 for person in people) == [0, 7]
    assert kinds(office).count("approved") == kinds(office).count("promoted") == 1
    in_order(office)
    outcome("approval given twice at once, by two processes", "the first counts; the second is refused with its name")
