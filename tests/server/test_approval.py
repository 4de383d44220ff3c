"""An approval through a real Prefect server: bad answers ask again, the worker may be killed, the good one promotes."""

import dataclasses
import os
import signal

import books
import httpx
import pytest
import tiny_run
from books import PASSED
from prefect_harness import served, wait_for, worker

from lora_select.audit.alias.promotion import promote
from lora_select.audit.books.ledger import in_folder
from lora_select.audit.verification import verify
from lora_select.records import Promotion, read
from lora_select.tracking import registry
from lora_select.tracking.store import prepare

pytestmark = [pytest.mark.server, pytest.mark.timeout(3000)]
PATIENCE_S = 900
"""For one step of a flow, which begins with a process that imports torch."""


@pytest.fixture
def environment(tmp_path, tiny_model_folder):
    """A server and the deployments of a tiny run whose promotion waits for a person."""
    tiny_run.written(tmp_path, tiny_model_folder)
    dataset = tiny_run.SECTIONS["dataset"] | {"source": str(tmp_path / "rows.jsonl")}
    training = tiny_run.SECTIONS["training"] | {"num_processes": 1}
    sections = tiny_run.SECTIONS | {"dataset": dataset, "training": training, "promotion": {"approval": "required"}}
    with served(tmp_path, tiny_model_folder, **sections) as environment:
        yield environment


def test_bad_answers_ask_again_and_the_good_one_promotes(environment, tmp_path):
    api, root = environment["PREFECT_API_URL"], tmp_path / "runs"
    deployment = httpx.get(f"{api}/deployments/name/finetune/manual").json()["id"]
    flow_run = httpx.post(f"{api}/deployments/{deployment}/create_flow_run", json={}).json()["id"]

    def state() -> dict:
        return httpx.get(f"{api}/flow_runs/{flow_run}").json()["state"]

    def asked(number: int) -> str:
        """What the form says, once it is shown for the so many-th time."""
        found = state()
        assert found["type"] not in ("FAILED", "CRASHED"), (tmp_path / "worker.log").read_text()[-4000:]
        if found["type"] != "PAUSED" or not found["state_details"]["pause_key"].endswith(f"-{number}"):
            return ""
        place = found["state_details"]["run_input_keyset"]["description"]
        return httpx.get(f"{api}/flow_runs/{flow_run}/input/{place}").text

    def resume(**answer) -> str:
        filled = {"override": False, **answer}  # the server asks for every field of the form

        def posted() -> str:
            """A server whose database is busy answers 5xx and has taken nothing: asked again."""
            answer = httpx.post(f"{api}/flow_runs/{flow_run}/resume", json={"run_input": filled}, timeout=60)
            return answer.raise_for_status().json()["status"]

        return wait_for(posted, 300, "an answer to the form")

    process = worker(environment, tmp_path)
    try:
        assert "Shall version 1 of tiny be champion?" in wait_for(lambda: asked(0), PATIENCE_S, "the question")
        assert resume(decision="perhaps", by="Ann", reason="x") == "REJECT"  # the server's own check of the form
        assert asked(0)
        assert resume(decision="approve", by="", reason="no name") == "ACCEPT"
        assert "needs a name" in wait_for(lambda: asked(1), PATIENCE_S, "the second question")
        # Another adapter becomes champion while the question stands.
        office = books.office(root, prepare(f"sqlite:///{tmp_path}/mlflow.db", "lora-select"))
        other = books.candidate(office, books.finished_run(root, "other"))
        assert promote(office, dataclasses.replace(other, model="tiny"), PASSED).version == "2"
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert resume(decision="approve", by="Ann", reason="reads well") == "ACCEPT"
        process = worker(environment, tmp_path)
        assert "the champion is version 2 and was none" in wait_for(lambda: asked(2), PATIENCE_S, "the third question")
        assert resume(decision="approve", by="Ann", reason="reads better", override=True) == "ACCEPT"
        wait_for(lambda: state()["type"] == "COMPLETED", PATIENCE_S, "the end")
    finally:
        process.terminate()
        process.wait(60)
    champion = registry.by_alias(office.store, "tiny")
    assert champion is not None
    assert champion.version == "1"
    [approved] = [entry for entry in in_folder(root).entries() if entry.kind == "approved"]
    assert (approved.by, approved.details["reason"]) == ("Ann", "reads better")
    assert approved.details["override"] == ["champion-changed"]
    run = root / approved.run
    assert read(Promotion, run / "promotion.json").alias == "champion"
    assert verify(run, office.store).faults == ()
    assert len(list((root / "stages" / "train").glob("*/record.json"))) == 1
