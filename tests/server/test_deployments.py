"""The deployments and automations on a real Prefect server with a real process worker, on a tiny model and a tiny dataset.

`make test-server`: an event starts `finetune/on-dataset`, the same dataset again reuses every stage, `retrain/weekly` does nothing and
says so, `sweep/reconcile` finds the event that was never sent, and a webhook is told of each end.
"""

import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import httpx
import pytest
from prefect_harness import PREFECT, ROOT, flow_runs, served, wait_for, worker

pytestmark = [pytest.mark.server, pytest.mark.timeout(3000)]
PATIENCE_S = 900


@pytest.fixture(scope="module")
def told():
    """What the webhook of the automations was sent, and its address."""
    texts: list[str] = []

    class Chat(BaseHTTPRequestHandler):
        def do_POST(self):
            texts.append(json.loads(self.rfile.read(int(self.headers["Content-Length"])))["text"])
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = HTTPServer(("127.0.0.1", 0), Chat)
    Thread(target=server.serve_forever, daemon=True).start()
    yield texts, f"http://127.0.0.1:{server.server_port}/hook"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def environment(tmp_path_factory, tiny_model_folder, told):
    """A server, a worker and the deployments; everything they write is below one temporary folder."""
    folder = tmp_path_factory.mktemp("server")
    with served(folder, tiny_model_folder) as environment:
        notify = [sys.executable, "infra/automations.py"]
        for _ in range(2):  # the second time changes what is there
            made = subprocess.run(
                notify,
                env={**environment, "LORA_SELECT_NOTIFY_URL": told[1]},
                cwd=ROOT,
                check=True,
                capture_output=True,
                text=True,
            )
        assert len(made.stdout.splitlines()) == 6
        process = worker(environment, folder)
        try:
            yield environment, folder
        finally:
            process.terminate()
            process.wait(60)


def post(environment, place: str, body: dict):
    answer = httpx.post(f"{environment['PREFECT_API_URL']}/{place}", json=body)
    return answer.raise_for_status().json()


def finished(environment, count: int) -> list[dict]:
    ended = flow_runs(environment, "COMPLETED", "FAILED", "CRASHED")
    return ended if len(ended) >= count else []


def register(environment, folder: Path, path: Path, *more: str) -> str:
    command = [sys.executable, "-m", "lora_select.cli.main", "data", "register", str(path)]
    command += ["--runs", str(folder / "runs"), *more]
    return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout


def test_event_starts_a_run_and_the_same_dataset_again_reuses_it(environment):
    env, folder = environment
    assert (
        len(httpx.post(f"{env['PREFECT_API_URL']}/automations/filter", json={}).json()) == 8
    )  # two are triggers of deployments
    data = folder / "rows.jsonl"
    rows = [{"prompt": f"say {n}", "completion": f"number {n}"} for n in range(60)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert "event dataset.registered sent" in register(env, folder, data)
    [first] = wait_for(lambda: finished(env, 1), PATIENCE_S, "the first run")
    log = (folder / "worker.log").read_text()[-4000:]
    assert (first["state_type"], first["state"]["name"]) == ("COMPLETED", "Blocked"), log
    report = folder / "runs" / "latest" / "report.html"
    made = report.stat().st_mtime_ns
    [answer] = post(env, "artifacts/filter", {"artifacts": {"key": {"any_": ["answer"]}}})
    assert "The gate's answer: refuse" in answer["data"] or "The gate's answer: undecided" in answer["data"]
    told = {"filter": {"event": {"name": ["champion.stays", "adapter.judged"]}}}
    events = wait_for(
        lambda: len(found := post(env, "events/filter", told)["events"]) == 2 and found, 120, "the events"
    )
    assert {event["resource"]["prefect.resource.id"].partition(".")[0] for event in events} == {"adapter", "model"}

    assert "no event was sent" in register(env, folder, data)
    register(env, folder, data, "--again")
    second = wait_for(lambda: finished(env, 2), PATIENCE_S, "the second run")[-1]
    assert (second["state_type"], second["state"]["name"]) == ("COMPLETED", "Unchanged")
    assert report.stat().st_mtime_ns == made
    assert len(list((folder / "runs" / "stages" / "train").glob("*/record.json"))) == 1


def test_weekly_says_that_nothing_changed(environment):
    env, folder = environment
    answer = subprocess.run(
        [
            *PREFECT, "deployment", "run", "retrain/weekly", "--watch", "--param",
            f"overrides={json.dumps([f'dataset.source={folder}/rows.jsonl'])}",
        ],
        env=env, capture_output=True, text=True, timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    runs = [run for run in flow_runs(env, "COMPLETED") if run["state"]["name"] == "Unchanged"]
    assert len(runs) == 2, answer.stdout + answer.stderr
    assert "nothing to do" in runs[-1]["state"]["message"]


def test_schedules_ask_for_runs(environment):
    """Prefect 3.8.8's scheduler fails in its log alone where SQLAlchemy is 2.1: nothing would ever run on time."""
    env, _ = environment

    def asked() -> set[str]:
        found = httpx.post(f"{env['PREFECT_API_URL']}/flow_runs/filter", json={}).json()
        return {run["deployment_id"] for run in found if run["auto_scheduled"]}

    wait_for(lambda: len(asked()) == 2, 180, "runs of the weekly deployment and of the sweep")


def test_a_person_is_told_of_each_end(environment, told):
    texts, _ = told
    wait_for(lambda: len(texts) >= 3, 120, "the notifications")
    assert [text.partition(":")[0].rpartition(" is ")[2] for text in texts] == ["blocked", "unchanged", "unchanged"]
    assert "nothing to do" in texts[-1]


def test_the_sweep_starts_what_no_event_did_and_nothing_twice(environment):
    env, folder = environment
    lost = folder / "lost.jsonl"
    lost.write_text((folder / "rows.jsonl").read_text().replace("say", "tell"))
    assert "no event was sent" in register({**env, "PREFECT_API_URL": ""}, folder, lost)

    def overrides() -> list[list[str]]:
        return [run["parameters"]["overrides"] for run in flow_runs(env) if "lost.jsonl" in str(run["parameters"])]

    sweep = [*PREFECT, "deployment", "run", "sweep/reconcile", "--watch"]
    for _ in range(2):
        subprocess.run(sweep, env=env, check=True, capture_output=True, timeout=PATIENCE_S)
        [(source, registered)] = wait_for(overrides, 120, "the run of what was lost")
    assert source == f"dataset.source={json.dumps(str(lost))}"
    assert registered.startswith("dataset.registered=")


def test_a_run_that_only_a_schedule_asked_for_is_begun_and_ends(environment):
    """The sweep every half minute in place of every quarter of an hour: nobody starts it here."""
    env, _ = environment
    api = env["PREFECT_API_URL"]
    sweep = httpx.get(f"{api}/deployments/name/sweep/reconcile").json()
    [schedule] = sweep["schedules"]
    often = {"schedule": {"interval": 30}, "active": True}
    httpx.patch(f"{api}/deployments/{sweep['id']}/schedules/{schedule['id']}", json=often).raise_for_status()

    def ended() -> list[dict]:
        body = {"deployments": {"id": {"any_": [sweep["id"]]}}, "sort": "START_TIME_ASC"}
        ran = [run for run in post(env, "flow_runs/filter", body) if run["auto_scheduled"]]
        return [run for run in ran if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED")]

    [first, *_] = wait_for(ended, PATIENCE_S, "a scheduled run")
    assert first["state_type"] == "COMPLETED", first["state"]["message"]
