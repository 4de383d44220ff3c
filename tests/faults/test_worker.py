"""SIGKILL of a real Prefect worker while its flow trains: no rank is left, and the next run goes on from the checkpoint."""

import json
import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest
from fault_harness import last_step, result
from prefect_harness import PREFECT, ROOT, flow_runs, served, wait_for, worker

from lora_select.training import processes
from lora_select.training.job import LAUNCH
from lora_select.training.supervisor import metrics_file

pytestmark = pytest.mark.fault
STEPS = 200
TRAINING = {"batch_size": 8, "epochs": 100, "max_steps": STEPS, "checkpoint_every": 10, "num_processes": 2}


@pytest.fixture
def place(tmp_path, tiny_model_folder):
    """`(environment, folder)` of a server whose deployments train 200 steps."""
    rows = [{"prompt": f"say {n}", "completion": f"number {n}"} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = {"source": str(tmp_path / "rows.jsonl"), "max_length": 64, "max_eval_rows": 8}
    with served(tmp_path, tiny_model_folder, dataset=dataset, training=TRAINING) as environment:
        yield environment, tmp_path


def begin(environment) -> None:
    """`prefect deployment run finetune/manual`, as a person types it."""
    line = [*PREFECT, "deployment", "run", "finetune/manual"]
    subprocess.run(line, env=environment, cwd=ROOT, check=True, capture_output=True)


def training(folder: Path) -> Path | None:
    """The folder in which ranks train."""
    found = list((folder / "runs" / "stages" / "train").glob("*/ranks"))
    return found[0].parent if found else None


def until_step(folder: Path, step: int) -> Path:
    wait_for(lambda: (at := training(folder)) and last_step(at) >= step, 900, f"step {step}")
    found = training(folder)
    assert found
    return found


def below(process: "subprocess.Popen[bytes]") -> list[processes.Identity]:
    return processes.descendants((process.pid, psutil.Process(process.pid).create_time()))


def from_flow_to(process: "subprocess.Popen[bytes]", at: Path) -> list[int]:
    """The process that trains in this folder and its parents up to the worker; Prefect puts some between them."""
    supervisor = json.loads((at / LAUNCH).read_text())["supervisor"][0]
    parents = [parent.pid for parent in psutil.Process(supervisor).parents()]
    return parents[: parents.index(process.pid) + 1]


def nothing_left(known: list[processes.Identity]) -> bool:
    return not any(processes.alive(who) for who in known)


def ended_well(environment, at: Path) -> list[dict]:
    """Completed runs, once the training has its result and every step once."""
    return flow_runs(environment, "COMPLETED") if (at / "result.json").is_file() else []


@pytest.mark.parametrize("victims", ["a Prefect worker", "a Prefect worker and its flow"])
def test_the_next_run_goes_on(place, outcome, victims):
    """Prefect ends the flow of a worker that is gone; where the flow is killed too, its supervisor sees that."""
    environment, folder = place
    process = worker(environment, folder)
    begin(environment)
    at = until_step(folder, 15)
    before, known = last_step(at), below(process)
    for victim in from_flow_to(process, at) if victims.endswith("flow") else [process.pid]:
        os.kill(victim, signal.SIGKILL)
    process.wait(10)
    wait_for(lambda: nothing_left(known), 60, "the end of every process below the worker")
    kept = last_step(at)
    assert kept < STEPS
    again = worker(environment, folder)
    try:
        begin(environment)
        wait_for(lambda: ended_well(environment, at), 1500, "the end of the second run")
    finally:
        again.terminate()
        again.wait(60)
    assert [step["step"] for step in metrics_file.read_metrics(at)] == list(range(1, STEPS + 1))
    (resumed,) = result(at).resumed_from
    assert 0 < resumed <= kept
    text = "all ranks ended; a new worker's run resumed"
    outcome(f"SIGKILL of {victims} after step {before}", text, max(0, before - resumed))
