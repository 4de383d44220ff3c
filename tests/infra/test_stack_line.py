"""The whole line on the whole stack: an event starts it, every service is restarted beside it, a person answers, and a backup holds all."""

import json
import os
import subprocess
import sys
import time

import books
import httpx
import psutil
import pytest
import tiny_run
from books import PASSED
from services import servers
from services.home import Home
from stack_harness import ROOT, stack

from lora_select.audit.alias.promotion import promote
from lora_select.audit.books.ledger import in_folder
from lora_select.audit.verification import verify
from lora_select.cli.main import main
from lora_select.tracking import registry
from lora_select.tracking.store import prepare

pytestmark = [pytest.mark.server, pytest.mark.timeout(9000)]
PATIENCE_S = 2400


@pytest.fixture
def served(place, tmp_path, tiny_model_folder, monkeypatch):
    """A running stack with the deployments of a tiny run whose promotion waits for a person; this process is a client of it."""
    home = Home(place / "one")
    monkeypatch.setenv("LORA_SELECT_HOME", str(ROOT))
    monkeypatch.setenv("LORA_SELECT_CONFIG", str(tmp_path / "tiny.yaml"))
    monkeypatch.setenv("LORA_SELECT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PREFECT_WORKER_QUERY_SECONDS", "2")
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    made = stack(home.root, "start")
    assert made.returncode == 0, made.stderr
    for name, value in servers.client_environment(home).items():
        monkeypatch.setenv(name, value)
    sections = {"training": {"num_processes": 1}, "tracking": {"uri": home.url("mlflow")}}
    tiny_run.written(tmp_path, tiny_model_folder, promotion={"approval": "required"}, **sections)
    for command in ([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], ["infra/automations.py"]):
        command = command if command[0] == sys.executable else [sys.executable, *command]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return home


def runs(home) -> list[dict]:
    """Flow runs of the event's deployment."""
    login = tuple(servers.client_environment(home)["PREFECT_API_AUTH_STRING"].split(":", 1))
    body = {"deployments": {"name": {"any_": ["on-dataset"]}}}
    answer = httpx.post(f"{home.url('prefect')}/api/flow_runs/filter", json=body, auth=login, timeout=60)
    return answer.raise_for_status().json()


def until(condition, what, home):
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            if found := condition():
                return found
        except httpx.HTTPError:  # a server that is being restarted
            pass
        time.sleep(1)
    raise AssertionError(f"{what} did not come: {(home.root / 'logs' / 'worker.log').read_text()[-4000:]}")


def test_event_restarts_approval_rollback_and_a_backup_whose_ledger_verifies(served, place, tmp_path):
    home, root = served, tmp_path / "runs"
    assert main(["data", "register", str(tmp_path / "rows.jsonl"), "--runs", str(root)]) == 0
    until(lambda: list(root.glob("*/tracking.json")), "a tracked run", home)
    for service in ("mlflow", "postgres", "prefect"):  # beside the run
        assert stack(home.root, "restart", service).returncode == 0, service

    def state(name: str) -> dict | None:
        found = runs(home)
        bad = [run["state"] for run in found if run["state_type"] in ("FAILED", "CRASHED")]
        assert not bad, (bad, (home.root / "logs" / "worker.log").read_text()[-6000:])
        return next((run for run in found if run["state"]["name"] == name), None)

    asked = until(lambda: state("Suspended"), "the question", home)
    assert stack(home.root, "restart", "worker").returncode == 0
    form = {"run_input": {"decision": "approve", "by": "Ann", "reason": "reads well", "override": False}}
    login = tuple(os.environ["PREFECT_API_AUTH_STRING"].split(":", 1))
    resume = f"{home.url('prefect')}/api/flow_runs/{asked['id']}/resume"
    until(lambda: httpx.post(resume, json=form, auth=login, timeout=60).raise_for_status(), "an answer taken", home)
    until(lambda: state("Promoted"), "the end", home)

    store = prepare(home.url("mlflow"))
    first = registry.by_alias(store, "tiny")
    assert first is not None
    [run] = [entry.run for entry in in_folder(root).entries() if entry.kind == "approved"]
    assert verify(root / run, store).faults == ()

    # Another champion, taken back; its bytes come through the server.
    office = books.office(root, store)
    other = books.candidate(office, books.finished_run(root, "other"), first.version)
    assert promote(office, other.__class__(**{**vars(other), "model": "tiny"}), PASSED).version != first.version
    assert main(["rollback", "tiny", "--by", "Ann", "--reason", "rude", "--runs", str(root)]) == 0
    assert registry.by_alias(store, "tiny").version == first.version
    assert main(["ledger", "verify", "--runs", str(root)]) == 0

    # No password is in a file of the runs, a log, a process list, Prefect's parameters or MLflow's tags.
    secrets = {file.read_text().strip() for file in (home.root / "secrets").glob("*_password")}
    assert len(secrets) >= 5
    found = store.client.search_runs([store.experiment_id])
    texts = [file.read_bytes() for folder in (root, home.root / "logs") for file in folder.rglob("*") if file.is_file()]
    texts += [" ".join(one.info["cmdline"] or []).encode() for one in psutil.process_iter(["cmdline"])]
    texts += [json.dumps(runs(home)).encode(), *(f"{one.data.tags} {one.data.params}".encode() for one in found)]
    assert not [secret for secret in secrets for text in texts if secret.encode() in text]

    saved = place / "saved"
    kept = stack(home.root, "backup", saved, "--also", root / "ledger.jsonl")
    assert kept.returncode == 0, kept.stderr
    assert stack(home.root, "stop").returncode == 0
    two = Home(place / "two")
    restored = stack(two.root, "restore", saved, "--into", tmp_path / "back")
    assert restored.returncode == 0, restored.stderr
    assert stack(two.root, "--without", "worker", "start").returncode == 0
    os.environ.update(servers.client_environment(two))  # the fixture puts the old ones back
    again = ["ledger", "verify", "--runs", str(tmp_path / "back"), "--tracking-uri", two.url("mlflow")]
    assert main(again) == 0
    ledger = tmp_path / "back" / "ledger.jsonl"
    lines = ledger.read_text().splitlines()
    ledger.write_text("\n".join(lines[:-1]) + "\n")
    assert main(again) == 1  # the end was cut off, and the restored MLflow knows
    assert {run["state"]["name"] for run in runs(two)} == {"Promoted"}
