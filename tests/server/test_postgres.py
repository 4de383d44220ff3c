"""A real PostgreSQL with a password: it works as documented, and the password is in no file, message, tag or process list."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import books
import mlflow_samples as samples
import psutil
import pytest
from books import PASSED

from lora_select.audit import run_entries
from lora_select.audit.alias.promotion import promote
from lora_select.audit.books import anchor
from lora_select.audit.verification import verify
from lora_select.cli import main
from lora_select.errors import WorldError
from lora_select.tracking import store as stores
from lora_select.tracking.tracker import Tracker

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(shutil.which("initdb") is None, reason="needs PostgreSQL's own binaries"),
]
PLANTED = "hunter22-planted"


@pytest.fixture
def port(tmp_path_factory):
    """PostgreSQL on loopback, a database `mlflow` of the user `ann`, who has the planted password."""
    folder = tmp_path_factory.mktemp("postgres")
    for parent in (folder, *folder.parents[:2]):
        parent.chmod(0o755)
    account = "nobody" if os.geteuid() == 0 else None
    if account:
        shutil.chown(folder, account)
    number = samples.free_port()
    (folder / "password").write_text(PLANTED)
    home = {"cwd": folder, "user": account, "check": True, "capture_output": True}
    make = ["initdb", "-D", "data", "-U", "ann", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}"]
    subprocess.run(make, **home)
    command = ["postgres", "-D", "data", "-p", str(number), "-h", "127.0.0.1", "-k", str(folder)]
    server = subprocess.Popen(command, cwd=folder, user=account, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ask = ["psql", "-h", "127.0.0.1", "-p", str(number), "-U", "ann", "postgres", "-c", "create database mlflow"]
        deadline = time.monotonic() + 60
        while subprocess.run(
            ask, env=os.environ | {"PGPASSWORD": PLANTED}, capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.5)
        yield number
    finally:
        server.send_signal(signal.SIGINT)  # PostgreSQL's fast shutdown: connections are not waited for
        server.wait(60)


def test_the_password_stays_where_it_was_put_needs_postgresql(port, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("PLANTED", PLANTED)
    told = f"postgresql://ann:${{PLANTED}}@127.0.0.1:{port}/mlflow"
    with pytest.raises(WorldError) as wrong:
        stores.prepare(told.replace("${PLANTED}", f"{PLANTED}-wrong"))
    assert PLANTED not in str(wrong.value)
    monkeypatch.chdir(tmp_path)
    store = stores.prepare(told, "test")
    root = tmp_path / "runs"
    office = books.office(root, store)
    run = books.finished_run(root)
    tracker = Tracker.start(store, run, "r1", name="tweets")
    for stage, record in (("profile", samples.profile), ("evaluation", samples.evaluation)):
        tracker.begin(stage)
        folder = tmp_path / stage
        folder.mkdir()
        tracker.log(stage, record(folder), folder)
        tracker.end(stage)
    assert promote(office, books.candidate(office, run), PASSED, approval="required").alias == "awaiting approval"
    tracker.finish()
    run_entries.closed(run, model="tweets")
    anchor.push(office.ledger, store, run_id=tracker.parent)
    assert verify(run, store).faults == ()
    assert main.main(["approve", str(run), "--by", "Ann", "--reason", "reads well"]) == 0
    assert main.main(["verify", str(run)]) == 0
    assert main.main(["ledger", "verify", "--runs", str(root)]) == 0

    for file in tmp_path.rglob("*"):
        if file.is_file():
            assert PLANTED.encode() not in file.read_bytes(), file
    said = capfd.readouterr()
    assert PLANTED not in said.out + said.err
    for found in store.client.search_runs([store.experiment_id]):
        assert PLANTED not in str(found.data.tags) + str(found.data.params)
    assert PLANTED not in str(store.client.get_experiment(store.experiment_id).tags)
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            assert PLANTED not in " ".join(process.cmdline())


def test_a_wrong_port_is_one_sentence_without_the_password_needs_postgresql(tmp_path: Path):
    with pytest.raises(WorldError, match="no database answers") as caught:
        stores.prepare(f"postgresql://ann:{PLANTED}@127.0.0.1:{samples.free_port()}/mlflow")
    assert PLANTED not in str(caught.value)
