"""A training run in a process of its own, so that it can be harmed from outside, and what must be true of it afterwards.

`python fault_harness.py FOLDER` does what the flow's training stage does: it trains, and ships new steps to MLflow.
"""

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import torch
from safetensors.torch import load_file

from lora_select import records
from lora_select.records import Adapter
from lora_select.training import heartbeat, job, processes
from lora_select.training.job import TrainingJob
from lora_select.training.supervisor import launch
from lora_select.training.supervisor import metrics_file as show

ROOT = Path(__file__).parents[1]
WANTED = "wanted.json"
"""The job as asked for; `job.json` beside it is what the launcher made of it."""
PATIENCE = 900.0
"""Seconds for a start and some steps on a machine with other work: four processes import torch, which has taken minutes."""


def main(folder: Path) -> int:
    """Train; errors as the command line shows them."""
    from lora_select.errors import InputError

    told = job.read_job(folder / WANTED)
    ship = shipper(folder)
    try:
        launch.train(told, folder, progress=lambda *_: ship())
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    finally:
        ship()
    return 0


def shipper(folder: Path) -> Callable[[], int]:
    """Sends new steps to the MLflow run that `mlflow.json` names, as the flow's progress does; 0 when there is none."""
    note = folder / "mlflow.json"
    if not note.is_file():
        return lambda: 0
    from lora_select.tracking.store import Store
    from lora_select.tracking.upload import Shipment, ship

    told = json.loads(note.read_text())
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=told["uri"], registry_uri=told["uri"])
    shipment = Shipment(Store(told["uri"], "faults", told["experiment"], client), told["run"], folder / job.METRICS)
    return lambda: ship(shipment)


def tracked(folder: Path, uri: str) -> Callable[[], list[int]]:
    """Make an MLflow run for the training in `folder`; returns what reads the steps that it holds, in order."""
    from lora_select.tracking.store import prepare

    store = prepare(uri, "faults")
    run = store.client.create_run(store.experiment_id).info.run_id
    (folder / "mlflow.json").write_text(json.dumps({"uri": store.uri, "experiment": store.experiment_id, "run": run}))
    return lambda: sorted(m.step for m in store.client.get_metric_history(run, "train/loss"))


class Run:
    """A started training process and everything below it."""

    def __init__(self, folder: Path, told: TrainingJob, prefix: Sequence[str] = ()) -> None:
        job.write_job(folder, told)
        (folder / job.JOB).rename(folder / WANTED)
        self.folder = folder
        self.prefix = prefix
        self.process = start(folder, prefix)
        self.watched: Callable[[], object] | None = None
        self._known: set[processes.Identity] = set()

    @property
    def supervisor(self) -> int:
        """Its process id."""
        return json.loads((self.folder / job.LAUNCH).read_text())["supervisor"][0]

    @property
    def ranks(self) -> list[int]:
        """Process ids by rank."""
        return [one["pid"] for one in heartbeat.read(self.folder)]

    @property
    def launcher(self) -> int:
        """torchrun's process id."""
        return psutil.Process(self.ranks[0]).ppid()

    def known(self) -> set[processes.Identity]:
        """Every process that was ever seen below the training process."""
        me = (self.process.pid, psutil.Process(self.process.pid).create_time())
        self._known |= set(processes.descendants(me))
        return self._known

    def until_step(self, step: int) -> None:
        """Wait until rank 0 has written that many steps."""
        self.until(lambda: last_step(self.folder) >= step)

    def until(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
        """Wait for something to become true while the run goes on."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "it did not happen in time"
            assert self.process.poll() is None, f"the run ended too early:\n{tail(self.folder)}"
            with contextlib.suppress(psutil.Error):
                self.known()
            time.sleep(0.02)

    def until_attempt(self, number: int) -> None:
        """Wait for the ranks' `number`-th start to be in its steps."""
        self.until(lambda: job.last_attempt(self.folder) >= number and len(heartbeat.read(self.folder)) > 0)

    def wait(self, seconds: float = 1200) -> int:
        """Its exit code."""
        deadline = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(psutil.Error):
                self.known()
            if self.watched:
                self.watched()
            time.sleep(0.1)
        return self.process.wait(max(1.0, deadline - time.monotonic()))

    def no_process_is_left(self, seconds: float = 40) -> None:
        """Nothing that was ever below the run is alive, soon."""
        deadline = time.monotonic() + seconds
        while left := [who for who in self._known if processes.alive(who)]:
            assert time.monotonic() < deadline, f"still alive: {left}"
            time.sleep(0.1)

    def again(self) -> "Run":
        """The same command a second time."""
        self.process = start(self.folder, self.prefix)
        return self


def start(folder: Path, prefix: Sequence[str] = ()) -> "subprocess.Popen[bytes]":
    """The training process, behind a command that limits it, without waiting for it."""
    command = [*prefix, sys.executable, __file__, str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # the tree that the tests are of, wherever one is installed
    with (folder / "flow.log").open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def last_step(folder: Path) -> int:
    """The last step that was written down."""
    steps = show.read_metrics(folder)
    return int(steps[-1]["step"]) if steps else 0


def tail(folder: Path) -> str:
    """The ends of both logs."""
    texts = [
        (folder / name).read_text(errors="replace")[-2500:]
        for name in ("flow.log", job.LOG)
        if (folder / name).exists()
    ]
    return "\n".join(texts)


def result(folder: Path) -> Adapter:
    """The record of a finished run."""
    return records.read(Adapter, folder / job.RESULT)


def assert_equal(folder: Path, reference: Path, *, rtol: float = 1e-6) -> None:
    """Every step once, in order, with the losses of the uninterrupted run; the same tokens; the same adapter."""
    found, wanted = show.read_metrics(folder), show.read_metrics(reference)
    assert [step["step"] for step in found] == [step["step"] for step in wanted]
    torch.testing.assert_close([s["loss"] for s in found], [s["loss"] for s in wanted], rtol=rtol, atol=1e-6)
    one, other = result(folder), result(reference)
    assert (one.steps, one.tokens, one.label_tokens) == (other.steps, other.tokens, other.label_tokens)
    tensors, expected = (load_file(f / "adapter" / "adapter_model.safetensors") for f in (folder, reference))
    assert tensors.keys() == expected.keys()
    for name in tensors:
        torch.testing.assert_close(tensors[name], expected[name], rtol=1e-4, atol=1e-5)


def kept(folder: Path) -> None:
    """Every remedy kept the effective batch and the seed."""
    told, first = job.read_job(folder / job.JOB).plan, job.read_job(folder / WANTED).plan
    assert told.num_processes * told.micro_batch_size * told.gradient_accumulation_steps == first.effective_batch_size
    assert (told.effective_batch_size, told.seed, told.total_steps) == (
        first.effective_batch_size,
        first.seed,
        first.total_steps,
    )


def remedied(folder: Path) -> list[str]:
    """What was remedied, by class."""
    return [remedy.failure for remedy in job.read_remedies(folder)]


if __name__ == "__main__":
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    sys.exit(main(Path(sys.argv[1])))
