"""The three deployments on a real Prefect server with a real process worker, on a tiny model and a tiny dataset.

`make test-server`: an event starts `finetune/on-dataset`, the same dataset again reuses every stage, and `retrain/weekly`
does nothing and says so.
"""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
import yaml

pytestmark = pytest.mark.server
ROOT = Path(__file__).parents[2]
PREFECT = [sys.executable, "-m", "prefect"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory, tiny_model_folder):
    """A server, a worker and the deployments; everything they write is below one temporary folder."""
    folder = tmp_path_factory.mktemp("server")
    config = folder / "tiny.yaml"
    config.write_text(yaml.safe_dump(tiny_config(folder, tiny_model_folder)))
    port = free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "LORA_SELECT_HOME": str(ROOT),
        "LORA_SELECT_CONFIG": str(config),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
    }
    log = (folder / "server.log").open("w")
    start = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    server = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
    worker = None
    try:
        wait_for(lambda: httpx.get(f"{environment['PREFECT_API_URL']}/health").is_success, 120, "server")
        for command in (
            ["work-pool", "create", "--type", "process", "lora-select"],
            ["--no-prompt", "deploy", "--all"],
        ):
            subprocess.run([*PREFECT, *command], env=environment, cwd=ROOT, check=True, stdout=log, stderr=log)
        worker_log = (folder / "worker.log").open("w")
        start = [*PREFECT, "worker", "start", "--pool", "lora-select"]
        worker = subprocess.Popen(start, env=environment, cwd=ROOT, stdout=worker_log, stderr=worker_log)
        yield environment, folder
    finally:
        for process in (worker, server):
            if process is not None:
                process.terminate()
                process.wait(60)


def tiny_config(folder: Path, model: Path) -> dict:
    return {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "base_model": {"source": str(model)},
        "dataset": {"source": str(folder / "none.jsonl"), "max_length": 64, "max_eval_rows": 8},
        "analysis": {"microbatches": 4, "microbatch_size": 2, "sketch_size": 4, "base_loss_rows": 8},
        "training": {"effective_batch_size": 8, "max_steps": 2},
        "evaluation": {
            "exact_match_rows": 2,
            "max_new_tokens": 4,
            "bootstrap_samples": 200,
            "reference_tokens": 512,
            "compare_plain_lora": False,
        },
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }


def wait_for(condition, seconds: float, what: str):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        try:
            found = condition()
        except httpx.HTTPError:
            found = None
        if found:
            return found
        time.sleep(1)
    raise AssertionError(f"{what} did not come within {seconds} s")


def flow_runs(environment, states) -> list[dict]:
    answer = httpx.post(f"{environment['PREFECT_API_URL']}/flow_runs/filter", json={"sort": "START_TIME_ASC"})
    return [run for run in answer.json() if run["state_type"] in states and run["deployment_id"]]


def finished(environment, count: int) -> list[dict]:
    ended = flow_runs(environment, {"COMPLETED", "FAILED", "CRASHED"})
    return ended if len(ended) >= count else []


def register(environment, folder: Path, path: Path) -> str:
    command = [sys.executable, "-m", "lora_select.cli", "data", "register", str(path)]
    command += ["--ledger", str(folder / "datasets.jsonl")]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_event_starts_a_run_and_the_same_dataset_again_reuses_it(environment):
    env, folder = environment
    data = folder / "rows.jsonl"
    rows = [{"prompt": f"say {n}", "completion": f"number {n}"} for n in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert "event dataset.registered sent" in register(env, folder, data)
    [first] = wait_for(lambda: finished(env, 1), 300, "the first run")
    log = (folder / "worker.log").read_text()[-4000:]
    assert first["state_type"] == "COMPLETED", log
    report = folder / "runs" / "latest" / "report.html"
    made = report.stat().st_mtime_ns

    register(env, folder, data)
    second = wait_for(lambda: finished(env, 2), 300, "the second run")[-1]
    assert second["state_type"] == "COMPLETED"
    assert report.stat().st_mtime_ns == made
    assert len(list((folder / "runs" / "stages" / "train").glob("*/record.json"))) == 1


def test_weekly_says_that_nothing_changed(environment):
    env, folder = environment
    answer = subprocess.run(
        [
            *PREFECT, "deployment", "run", "retrain/weekly", "--watch", "--param",
            f"overrides={json.dumps([f'dataset.source={folder}/rows.jsonl'])}",
        ],
        env=env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    runs = [run for run in flow_runs(env, {"COMPLETED"}) if run["state"]["name"] == "Unchanged"]
    assert runs, answer.stdout + answer.stderr
    assert "nothing to do" in runs[0]["state"]["message"]
