"""A worker and its flow killed for good: the server calls the run crashed, the sweep puts its dataset back, another run ends it."""

import json
import subprocess
import sys
import time

import psutil
import pytest
from prefect_harness import ROOT, flow_runs, served, wait_for, worker

from lora_select.audit.books.ledger import in_folder
from lora_select.audit.registrations import pending
from lora_select.cli import main

pytestmark = [pytest.mark.server, pytest.mark.timeout(3000)]
PATIENCE_S = 900
NOTICED_S = 300
"""At the latest: 120 seconds of silence after a heartbeat, and the server's own rounds."""


def test_what_a_dead_run_left_is_taken_up_again(tmp_path, tiny_model_folder, monkeypatch):
    rows = [{"prompt": f"say {n}", "completion": f"number {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    root = tmp_path / "runs"
    with served(tmp_path, tiny_model_folder) as environment:
        subprocess.run([sys.executable, "infra/automations.py"], env=environment, cwd=ROOT, check=True)
        monkeypatch.setenv("PREFECT_API_URL", environment["PREFECT_API_URL"])
        process = worker(environment, tmp_path)
        try:
            assert main.main(["data", "register", str(tmp_path / "rows.jsonl"), "--runs", str(root)]) == 0
            wait_for(lambda: list(root.glob("stages/profile/*/record.json")), PATIENCE_S, "a run at work")
            tree = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
            for each in tree:
                each.kill()
            process.wait()
            killed = time.monotonic()
            process = worker(environment, tmp_path)
            wait_for(lambda: flow_runs(environment, "CRASHED"), PATIENCE_S, "the dead run's state")
            silent = time.monotonic() - killed
            [ended] = wait_for(lambda: flow_runs(environment, "COMPLETED"), PATIENCE_S, "the end")
        finally:
            process.terminate()
            process.wait(60)
        runs = flow_runs(environment)
    print(f"crashed {silent:.0f} s after the kill")
    assert silent < NOTICED_S
    assert ended["state"]["name"] == "Blocked"
    assert [run["state_type"] for run in runs] == ["CRASHED", "COMPLETED"]
    kinds = [entry.kind for entry in in_folder(root).entries() if entry.kind.startswith("dataset ")]
    assert kinds == ["dataset taken", "dataset put back", "dataset taken"]
    assert pending(root) == []
