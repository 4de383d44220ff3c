"""The commands as a person types them: what is printed and the exit code."""

import json

import books
import pytest
from books import BLOCKED, MODEL, PASSED

from lora_select import records
from lora_select.audit import run_entries
from lora_select.audit.alias.promotion import promote
from lora_select.audit.books import anchor
from lora_select.audit.verification import verify
from lora_select.cli import main
from lora_select.errors import InputError, WorldError


@pytest.fixture
def office(tmp_path, store):
    return books.office(tmp_path / "runs", store)


def finish(office, key="r1", variant="lora", judgement=PASSED, compared_with=None, **settings):
    run = books.finished_run(office.ledger.path.parent, key, variant)
    notes = {"uri": office.store.uri, "experiment_id": office.store.experiment_id, "parent_run_id": "x"}
    records.write_private(run / "tracking.json", json.dumps(notes))
    promote(office, books.candidate(office, run, compared_with), judgement, **settings)
    run_entries.closed(run, model=MODEL)
    return run


def call(*words) -> int:
    """The command, with its errors."""
    parsed = main._parser().parse_args([str(word) for word in words])
    return parsed.run(parsed)


def test_verify_names_the_file_and_ends_with_1(office, capsys):
    run = finish(office)
    assert call("verify", run) == 0
    assert "files are what they were" in capsys.readouterr().out
    (run / "config.json").write_text('{"name": "tweets", "seed": 1}\n')
    assert call("verify", run, "--offline") == 1
    assert f"BAD  {run / 'config.json'} was changed" in capsys.readouterr().out


def test_verify_says_that_mlflow_was_not_asked(office, capsys, tmp_path):
    run = finish(office)
    (tmp_path / "mlflow.db").rename(tmp_path / "away.db")
    assert call("verify", run) == 1
    assert "mlflow.db is gone" in capsys.readouterr().out
    assert call("verify", run, "--offline") == 0


def test_approve_reject_and_rollback_print_what_they_did(office, capsys):
    root = office.ledger.path.parent
    first = finish(office, approval="required")
    assert call("approve", first, "--by", "Ann", "--reason", "reads well") == 0
    assert "version 1 is champion of tweets" in capsys.readouterr().out
    second = finish(office, "r2", "dora", BLOCKED, compared_with="1")
    with pytest.raises(InputError):
        call("approve", second, "--by", "Ann", "--reason", "hurry")
    assert call("approve", second, "--by", "Ann", "--reason", "hurry", "--override") == 0
    assert "before: version 1" in capsys.readouterr().out
    assert call("rollback", MODEL, "--runs", root, "--by", "Bob", "--reason", "too hasty") == 0
    assert "version 1 is champion of tweets again, version 2 is not" in capsys.readouterr().out
    third = finish(office, "r3", "eva", compared_with="1", approval="required")
    assert call("reject", third, "--by", "Bob", "--reason", "rude") == 0
    assert call("ledger", "verify", "--runs", root) == 0
    assert call("ledger", "show", MODEL, "--runs", root) == 0
    shown = capsys.readouterr().out
    assert "hurry (overrides loss)" in shown
    assert "champion -> version 1" in shown
    assert call("ledger", "show", "--json", "--runs", root) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [json.loads(line)["sequence"] for line in lines] == list(range(len(lines)))


def test_what_was_never_tracked_is_verified_without_mlflow(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = books.finished_run(tmp_path / "runs")
    run_entries.closed(run)
    assert call("verify", run) == 0
    assert call("ledger", "verify", "--runs", run.parent) == 0
    assert "was not compared with MLflow" in capsys.readouterr().out


def test_mlflow_that_does_not_answer_is_no_note(office, monkeypatch):
    run = finish(office)
    assert verify(run, office.store).faults == ()

    def away(*_):
        raise WorldError("MLflow does not answer")

    monkeypatch.setattr(anchor, "faults", away)
    assert "MLflow does not answer" in verify(run, office.store).faults[0]


def test_ledger_verify_sees_a_cut_end(office, capsys):
    finish(office)
    path = office.ledger.path
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:2]))
    assert call("ledger", "verify", "--runs", path.parent) == 1
    assert "BAD  entries 2 to 3 were cut off at the end" in capsys.readouterr().out
    assert call("ledger", "verify", "--runs", path.parent, "--offline") == 0


def test_unknown_models_and_folders_are_named(office, tmp_path):
    finish(office)
    root = office.ledger.path.parent
    with pytest.raises(InputError, match="knows no model 'twets'; it knows tweets"):
        call("rollback", "twets", "--runs", root, "--by", "Ann", "--reason", "x")
    with pytest.raises(InputError, match="no entry"):
        call("ledger", "show", "--runs", tmp_path / "none")
    with pytest.raises(InputError, match="is no run's folder"):
        call("verify", tmp_path, "--offline")


def test_clean_says_what_would_go(office, capsys):
    run = finish(office)
    folder = run_entries.stages(run)["adapter"].folder / "checkpoints"
    folder.mkdir()
    (folder / "x").write_bytes(b"x" * 2000)
    assert call("clean", "--runs", run.parent, "--dry-run") == 0
    assert "2.0 kB would go" in capsys.readouterr().out
    assert folder.is_dir()
    assert call("clean", "--runs", run.parent) == 0
    assert not folder.exists()
