"""Faults injected for real: a full disk under the ledger, a server that dies in mid-promotion, SIGTERM to a flow."""

import dataclasses
import os
import signal
import subprocess
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import books
import mlflow_samples as samples
import psutil
import pytest
import tiny_run
from books import MODEL, PASSED

from lora_select.audit.alias import approval
from lora_select.audit.alias.approval import Answer
from lora_select.audit.alias.promotion import Office, promote
from lora_select.audit.books import chain
from lora_select.audit.books.ledger import Ledger
from lora_select.errors import InputError, WorldError
from lora_select.tracking import registry
from lora_select.tracking.store import prepare

pytestmark = pytest.mark.fault


@pytest.fixture
def small_disk(tmp_path):
    """A tmpfs of 1 MB at the runs folder."""
    place = tmp_path / "runs"
    place.mkdir()
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)], check=False).returncode
    ):
        pytest.skip("needs root, to mount a small disk")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_full_disk_under_the_ledger_promotes_nothing_needs_root(small_disk, store, outcome):
    office = books.office(small_disk, store)
    run = books.finished_run(small_disk)
    candidate = books.candidate(office, run)
    office.ledger.append("note")
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        _fill(filler)
    long = {"reasons": "x" * 8000}  # more than what is left of the ledger's own last block
    before = office.ledger.path.read_bytes()
    with pytest.raises(WorldError, match="No space left"):
        office.ledger.append("note", details=long)
    assert office.ledger.path.read_bytes() == before
    for _ in range(40):
        try:
            office.ledger.append("note")  # fills the block
        except WorldError:
            break
    with pytest.raises(WorldError, match="cannot be written"):
        promote(office, candidate, PASSED)
    assert registry.by_alias(store, MODEL) is None
    assert chain.check(office.ledger.path).faults == ()
    filler.unlink()
    assert promote(office, candidate, PASSED).alias == "champion"
    assert chain.check(office.ledger.path).faults == ()
    outcome(
        "disk full while the ledger is written (a tmpfs of 1 MB)",
        "nothing was promoted, the ledger is whole; with room the same command promoted",
    )


def test_mlflow_killed_in_mid_promotion(template, tmp_path, outcome, monkeypatch):
    database = tmp_path / "mlflow.db"
    database.write_bytes(template.read_bytes())
    port = samples.free_port()
    root = tmp_path / "runs"
    run = books.finished_run(root)
    with samples.server(database, port) as address:
        office = books.office(root, prepare(address, "test"))
        candidate = books.candidate(office, run)
        real = Ledger.append

        def then_kill(ledger, kind, **more):
            entry = real(ledger, kind, **more)
            if kind == "promotion-intended":
                for process in psutil.process_iter():
                    if process.pid != os.getpid() and f"--port {port}" in " ".join(process.cmdline()):
                        process.kill()
            return entry

        monkeypatch.setattr(Ledger, "append", then_kill)
        made = promote(office, candidate, PASSED)
        monkeypatch.undo()
        assert (made.alias, made.version) == ("deferred", "")
    with samples.server(database, port) as address:
        office = books.office(root, prepare(address, "test"))
        assert promote(office, candidate, PASSED).alias == "champion"
    kinds = [entry.kind for entry in office.ledger.entries()]
    assert kinds.count("promoted") == 1
    assert chain.check(office.ledger.path).faults == ()
    outcome(
        "SIGKILL of MLflow's server after the promise was entered",
        "the promotion was deferred; the next start kept the promise, once",
    )


def test_sigterm_outside_training_leaves_no_prefect_server(tmp_path, tiny_model_folder, outcome):
    tiny_run.written(tmp_path, tiny_model_folder, analysis={"microbatches": 400, "microbatch_size": 2})
    command, env = tiny_run.command(tmp_path), tiny_run.environment(tmp_path)
    with (tmp_path / "log").open("w") as log:
        flow = psutil.Popen(command, cwd=tiny_run.ROOT, env=env, stdout=log, stderr=log)
        _until(lambda: list((tmp_path / "runs" / "stages").glob("profile/*/record.json")), 200)
        servers = [child for child in flow.children(recursive=True) if "uvicorn" in " ".join(child.cmdline())]
        assert servers
        flow.send_signal(signal.SIGTERM)
        assert flow.wait(60) in (143, -signal.SIGTERM)
    _until(lambda: not any(server.is_running() and server.status() != psutil.STATUS_ZOMBIE for server in servers), 20)
    outcome("SIGTERM to the flow outside training", "no temporary Prefect server is left")


def test_a_clock_that_is_set_back_between_two_promotions(store, tmp_path, outcome):
    root = tmp_path / "runs"
    office = books.office(root, store)
    assert promote(office, books.candidate(office, books.finished_run(root)), PASSED).alias == "champion"
    early = dataclasses.replace(office.ledger, clock=lambda: datetime.now(UTC) - timedelta(days=9))
    back = Office(early, store)
    candidate = books.candidate(back, books.finished_run(root, "r2", "dora"), "1")
    assert promote(back, candidate, PASSED, approval="required").alias == "awaiting approval"
    approval.approve(office, root / "r2", Answer("Ann", "reads well"))
    assert registry.by_alias(store, MODEL).version == "2"
    found = chain.check(office.ledger.path)
    assert found.faults == ()
    assert any("has an earlier time" in note for note in found.notes)
    outcome(
        "the clock set back by nine days between two promotions",
        "order is by number; the ledger notes the earlier time",
    )


def test_approval_after_rejection(store, tmp_path, outcome):
    root = tmp_path / "runs"
    office = books.office(root, store)
    run, _ = books.finish(office, root, approval="required")
    approval.reject(office, run, Answer("Bob", "rude"))
    for override in (False, True):
        with pytest.raises(InputError, match=r"was rejected before \(entry \d+, Bob"):
            approval.approve(office, run, Answer("Ann", "reads well", override))
    assert registry.by_alias(store, MODEL) is None
    outcome(
        "approval after rejection, with and without override", "refused with the first one's name; nothing was promoted"
    )


def _fill(path: Path) -> None:
    with path.open("wb", buffering=0) as stream:
        while True:
            stream.write(b"x" * 4096)


def _until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)
