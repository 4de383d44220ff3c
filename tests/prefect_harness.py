"""A real Prefect server with the deployments, and process workers that can be started and killed."""

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import yaml
from fault_harness import free_port

ROOT = Path(__file__).parents[1]
PREFECT = [sys.executable, "-m", "prefect"]
POOL = "lora-select"
LIMITS = {
    "analysis": {"microbatches": 4, "microbatch_size": 2, "sketch_size": 4, "base_loss_rows": 8},
    "evaluation": {
        "exact_match_rows": 2,
        "max_new_tokens": 4,
        "bootstrap_samples": 200,
        "reference_tokens": 512,
        "compare_plain_lora": False,
    },
}
"""The smallest run that goes through every stage."""


@contextlib.contextmanager
def served(folder: Path, model: Path, **sections: Any) -> Iterator[Mapping[str, str]]:
    """The environment of a server with the deployments of `folder/tiny.yaml`; everything it writes is below `folder`."""
    config = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "base_model": {"source": str(model)},
        "dataset": {"source": str(folder / "none.jsonl"), "max_length": 64, "max_eval_rows": 8},
        "training": {"batch_size": 8, "max_steps": 2},
        "tracking": {"uri": f"sqlite:///{folder}/mlflow.db"},
    }
    (folder / "tiny.yaml").write_text(yaml.safe_dump(config | LIMITS | sections))
    port = free_port()
    environment = os.environ | {
        "PREFECT_HOME": str(folder / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "LORA_SELECT_HOME": str(ROOT),
        "LORA_SELECT_CONFIG": str(folder / "tiny.yaml"),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    with (folder / "server.log").open("w") as log:
        start = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(start, env=environment, stdout=log, stderr=log)
        try:
            wait_for(lambda: httpx.get(f"{environment['PREFECT_API_URL']}/health").is_success, 600, "server")
            for command in (["work-pool", "create", "--type", "process", POOL], ["--no-prompt", "deploy", "--all"]):
                subprocess.run([*PREFECT, *command], env=environment, cwd=ROOT, check=True, stdout=log, stderr=log)
            yield environment
        finally:
            server.terminate()
            server.wait(60)


def worker(environment: Mapping[str, str], folder: Path) -> "subprocess.Popen[bytes]":
    """A process worker, without waiting for it; it appends to `folder/worker.log`."""
    with (folder / "worker.log").open("ab") as log:
        start = [sys.executable, "infra/worker.py", "--pool", POOL, "--limit", "1"]
        return subprocess.Popen(start, env=dict(environment), cwd=ROOT, stdout=log, stderr=log)


def wait_for(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """What the condition gave once it was true; a server that does not answer yet is no error."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if found := condition():
                return found
        time.sleep(0.5)
    raise AssertionError(f"{what} did not come within {seconds} s")


def flow_runs(environment: Mapping[str, str], *states: str) -> list[dict[str, Any]]:
    """Runs of the line's deployments in these states (all: none named), oldest first; not the sweep's, nor what only a schedule asks for."""
    line = {"name": {"any_": ["manual", "on-dataset", "weekly"]}}
    body = {"sort": "START_TIME_ASC", "deployments": line}
    answer = httpx.post(f"{environment['PREFECT_API_URL']}/flow_runs/filter", json=body)
    ours = [run for run in answer.raise_for_status().json() if not run["auto_scheduled"]]
    return [run for run in ours if not states or run["state_type"] in states]
