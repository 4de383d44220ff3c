"""An approval through a real Prefect server: bad answers ask again, the worker may be killed, the good one promotes."""

import os
import signal
import subprocess

import books
import httpx
import pytest
import yaml
from books import PASSED
from fault_harness import free_port
from prefect_harness import PREFECT, ROOT, wait_for, worker

from lora_select.audit import runs
from lora_select.audit.promotion import promote
from lora_select.tracking import registry
from lora_select.tracking.store import prepare

pytestmark = pytest.mark.server


@pytest.fixture
def store(tmp_path):
    return prepare(f"sqlite:///{tmp_path}/mlflow.db", "test")


@pytest.fixture
def environment(tmp_path):
    """A server and a deployment of the asking flow."""
    port = free_port()
    env = os.environ | {
        "PREFECT_HOME": str(tmp_path / "prefect"),
        "PREFECT_API_URL": f"http://127.0.0.1:{port}/api",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "DO_NOT_TRACK": "true",
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }
    steps = [{"prefect.deployments.steps.set_working_directory": {"directory": str(ROOT)}}]
    deployment = {
        "name": "asks", "entrypoint": "tests/server/approval_flow.py:asks", "work_pool": {"name": "lora-select"},
    }  # fmt: skip
    (tmp_path / "prefect.yaml").write_text(yaml.safe_dump({"name": "x", "pull": steps, "deployments": [deployment]}))
    with (tmp_path / "server.log").open("w") as log:
        start = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(start, env=env, stdout=log, stderr=log)
        try:
            wait_for(lambda: httpx.get(f"{env['PREFECT_API_URL']}/health").is_success, 300, "server")
            deploy = ["--no-prompt", "deploy", "--all", "--prefect-file", str(tmp_path / "prefect.yaml")]
            for command in (["work-pool", "create", "--type", "process", "lora-select"], deploy):
                subprocess.run([*PREFECT, *command], env=env, cwd=ROOT, check=True, stdout=log, stderr=log)
            yield env
        finally:
            server.terminate()
            server.wait(60)


def test_bad_answers_ask_again_and_the_good_one_promotes(environment, store, tmp_path):
    api = environment["PREFECT_API_URL"]
    root = tmp_path / "runs"
    office = books.office(root, store)
    run = books.finished_run(root)
    promote(office, books.candidate(office, run), PASSED, approval="required")
    runs.closed(run, model="tweets")
    deployment = httpx.get(f"{api}/deployments/name/asks/asks").json()["id"]
    parameters = {"root": str(root), "key": "r1", "uri": store.uri}
    flow_run = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json={"parameters": parameters}).json()[
        "id"
    ]

    def state() -> dict:
        return httpx.get(f"{api}/flow_runs/{flow_run}").json()["state"]

    def suspended(number: int):
        found = state()
        assert found["type"] not in ("FAILED", "CRASHED"), found
        return found["type"] == "PAUSED" and found["state_details"]["pause_key"] == f"approval-r1-{number}"

    def resume(**answer) -> dict:
        filled = {"override": False, **answer}  # the server asks for every field of the form
        return httpx.post(f"{api}/flow_runs/{flow_run}/resume", json={"run_input": filled}).json()

    process = worker(environment, tmp_path)
    try:
        wait_for(lambda: suspended(0), 400, "the question")
        assert (
            resume(decision="perhaps", by="Ann", reason="x")["status"] == "REJECT"
        )  # the server's own check of the form
        assert suspended(0)
        assert resume(decision="approve", by="", reason="no name")["status"] == "ACCEPT"
        wait_for(lambda: suspended(1), 400, "the second question")
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert resume(decision="approve", by="Ann", reason="reads well")["status"] == "ACCEPT"
        process = worker(environment, tmp_path)
        wait_for(lambda: state()["type"] == "COMPLETED", 400, "the end")
    finally:
        process.terminate()
        process.wait(60)
    champion = registry.by_alias(prepare(store.uri, "test"), "tweets")
    assert champion is not None
    assert champion.version == "1"
    assert (root / "said").read_text() == "promoted"
    approved = [entry for entry in office.ledger.entries() if entry.kind == "approved"]
    assert [(entry.by, entry.details["reason"]) for entry in approved] == [("Ann", "reads well")]
