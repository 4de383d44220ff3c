"""What goes is what nothing needs; what a champion, a request or a rollback needs stays."""

import os
import time

import books
import pytest
from books import BLOCKED, MODEL, PASSED

from lora_select.audit import run_entries
from lora_select.audit.alias.promotion import promote
from lora_select.audit.clean_up import DAY, clean, plan, size_of
from lora_select.audit.verification import verify
from lora_select.errors import InputError

DAYS_40 = time.time() + 40 * DAY


@pytest.fixture
def office(tmp_path, store):
    return books.office(tmp_path / "runs", store)


def finish(office, key, variant, judgement=PASSED, compared_with=None, **settings):
    root = office.ledger.path.parent
    run = books.finished_run(root, key, variant)
    promote(office, books.candidate(office, run, compared_with), judgement, **settings)
    run_entries.closed(run, model=MODEL)
    return run


def names(made):
    return {piece.path.name for piece in made.pieces}


def test_old_runs_go_but_champions_of_now_and_before_and_open_requests_stay(office):
    root = office.ledger.path.parent
    first = finish(office, "r1", "lora")
    second = finish(office, "r2", "dora", compared_with="1")
    finish(office, "r3", "eva", BLOCKED, compared_with="2")
    finish(office, "r4", "rslora", compared_with="2", approval="required")
    assert plan(root, older_days=30).pieces == ()
    made = plan(root, older_days=30, now=DAYS_40)
    assert {piece.path.name for piece in made.pieces if piece.path.parent == root} == {"r3"}
    assert dict(made.kept).keys() == {"r1", "r2", "r4"}
    assert made.size == sum(size_of(piece.path) for piece in made.pieces) > 0
    forgetful = plan(root, older_days=30, keep_champions=False, now=DAYS_40)
    assert {piece.path.name for piece in forgetful.pieces if piece.path.parent == root} == {"r1", "r3"}
    before = [entry.digest for entry in office.ledger.entries()]
    clean(root, made)
    assert not (root / "r3").exists()
    assert [verify(run, store=office.store).faults for run in (first, second)] == [(), ()]
    entries = office.ledger.entries()
    assert [entry.digest for entry in entries[:-1]] == before
    assert entries[-1].kind == "cleaned"
    assert plan(root, older_days=30, now=DAYS_40).pieces == ()


def test_a_dry_run_removes_nothing(office):
    root = office.ledger.path.parent
    finish(office, "r3", "eva", BLOCKED)
    files = sorted(root.rglob("*"))
    plan(root, older_days=0.0, now=DAYS_40)
    assert sorted(root.rglob("*")) == files


def test_checkpoints_and_orphans_go_without_asking_for_age(office):
    root = office.ledger.path.parent
    run = finish(office, "r1", "lora")
    folder = run_entries.stages(run)["adapter"].folder
    (folder / "checkpoints" / "step-1").mkdir(parents=True)
    (folder / "checkpoints" / "step-1" / "x.safetensors").write_bytes(b"x" * 50)
    orphan = books.finished_run(root, "r9", "dora")
    for file in sorted(orphan.iterdir()):
        file.unlink()
    orphan.rmdir()
    made = plan(root, now=time.time() + 2 * 3600)
    assert names(made) == {"checkpoints", "r9profile", "r9adapter", "r9evaluation"}
    assert next(piece.size for piece in made.pieces if piece.path.name == "checkpoints") == 50
    assert names(plan(root)) == {"checkpoints"}  # what ended just now may belong to a run that has not shown it yet
    clean(root, made)
    assert verify(run).faults == ()


def test_an_unfinished_training_is_kept_for_its_resume(office):
    root = office.ledger.path.parent
    finish(office, "r1", "lora")
    attempt = root / "stages" / "train" / "half"
    (attempt / "checkpoints" / "step-1").mkdir(parents=True)
    (attempt / "job.json").write_text("{}")
    assert plan(root, now=DAYS_40).pieces == ()
    assert names(plan(root, older_days=30, now=DAYS_40)) == {"half"}
    os.utime(attempt / "job.json", (DAYS_40, DAYS_40))
    assert plan(root, older_days=30, now=DAYS_40).pieces == ()


def test_stages_of_runs_of_an_older_version_are_known_by_their_records(office):
    root = office.ledger.path.parent
    run = finish(office, "r1", "lora")
    (run / run_entries.STAGES).unlink()
    assert plan(root, now=DAYS_40).pieces == ()


def test_no_folder(tmp_path):
    with pytest.raises(InputError, match="is no runs folder"):
        plan(tmp_path / "none")
