"""The three deployments on a real Prefect server with a real process worker, on a tiny model and a tiny dataset.

`make test-server`: an event starts `finetune/on-dataset`, the same dataset again reuses every stage, and `retrain/weekly`
does nothing and says so.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from prefect_harness import PREFECT, flow_runs, served, wait_for, worker

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def environment(tmp_path_factory, tiny_model_folder):
    """A server, a worker and the deployments; everything they write is below one temporary folder."""
    folder = tmp_path_factory.mktemp("server")
    with served(folder, tiny_model_folder) as environment:
        process = worker(environment, folder)
        try:
            yield environment, folder
        finally:
            process.terminate()
            process.wait(60)


def finished(environment, count: int) -> list[dict]:
    ended = flow_runs(environment, "COMPLETED", "FAILED", "CRASHED")
    return ended if len(ended) >= count else []


def register(environment, folder: Path, path: Path, *more: str) -> str:
    command = [sys.executable, "-m", "lora_select.cli.main", "data", "register", str(path)]
    command += ["--runs", str(folder / "runs"), *more]
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

    assert "no event was sent" in register(env, folder, data)
    register(env, folder, data, "--again")
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
    runs = [run for run in flow_runs(env, "COMPLETED") if run["state"]["name"] == "Unchanged"]
    assert runs, answer.stdout + answer.stderr
    assert "nothing to do" in runs[0]["state"]["message"]
