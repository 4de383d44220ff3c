"""Starting a training run and waiting for its result; what a killed run left behind is ended or taken up."""

import contextlib
import dataclasses
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from lora_select import records
from lora_select.records import Adapter
from lora_select.training import energy, failures, heartbeat, job, processes
from lora_select.training.failures import Ending, Failure
from lora_select.training.job import TrainingJob
from lora_select.training.supervisor import preflight, recovery
from lora_select.training.supervisor.metrics_file import Report, show
from lora_select.training.supervisor.supervise import GRACE_SECONDS, WORKER
from lora_select.training.worker import checkpoints, sanity
from lora_select.training.worker.resume import metrics_until
from lora_select.training.zero import working

POLL_SECONDS = 0.5
RENDEZVOUS = "LORA_SELECT_RENDEZVOUS"
"""host:port where the nodes of a run meet. An address changes no result, so it is no part of the config or of a key."""
HEAD = "head"
"""A file that the launcher touches while it waits, so that agents on other nodes can tell a living run from a dead one."""
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|_KEY$|^MLFLOW_", re.IGNORECASE)


def train(told: TrainingJob, folder: Path, *, progress: Report | None = None) -> Adapter:
    """Train in supervised rank processes; returns when `result.json` is there and its files verify.

    A folder that holds checkpoints of a killed run is resumed; processes that such a run left are ended first. If another
    process trains in the folder now, its result is waited for. A failure that a remedy fits is remedied: each is written
    down in `remedies.json` and in the adapter's record, and there is a bound on their number.

    Args:
        told: what to train.
        folder: the run's folder; the same folder resumes.
        progress: called with (step, steps, loss, speed and time left).

    Raises:
        InputError: no remedy is left and a setting can mend it; the message names the way out.
        WorldError: the ranks ended without a result and no remedy is left.
    """
    told = dataclasses.replace(told, rendezvous=told.rendezvous or os.environ.get(RENDEZVOUS))
    with _alone_in(folder, told, progress):
        if adapter := finished(folder):
            return adapter
        reap(folder)
        restarts = 0
        while True:
            history = job.read_remedies(folder)
            current = dataclasses.replace(told, plan=recovery.applied(told.plan, history))
            preflight.check(current)
            failure = _attempt(current, folder, progress)
            if adapter := finished(folder):
                return adapter
            reap(folder)
            failure = failure or Failure(failures.ERROR, 0, "the ranks ended well but left no result that verifies")
            remedy = recovery.propose(
                failure, current.plan, history, restarts, stages=working(told.spec, told.quantized_base)
            )
            if remedy is None:
                raise recovery.error(failure, current.plan, str(folder / job.LOG))
            restarts += not remedy.after
            try:
                _prepare(folder, failure)
                job.write_remedies(folder, [*history, remedy])
            except OSError as error:  # a remedy that cannot be written down is not used
                raise recovery.error(failure, current.plan, str(folder / job.LOG)) from error
            _say(folder, f"{failure.kind}: {failure.message}; remedy: {remedy.action}")


def finished(folder: Path) -> Adapter | None:
    """The result of a finished run, or None; the exit code of a launcher is never asked."""
    result = folder / job.RESULT
    if not result.is_file():
        return None
    adapter = records.read(Adapter, result)
    for file in (*adapter.files, adapter.reference_logits):
        path = folder / file.path
        if not path.is_file() or records.sha256_file(path) != file.sha256:
            result.unlink()
            return None
    return dataclasses.replace(adapter, energy=energy.used(folder))


def reap(folder: Path, node: int = 0) -> int:
    """End what an earlier run in this folder left alive on this node; returns how many processes that were."""
    try:
        noted = json.loads((folder / job.node_file(job.LAUNCH, node)).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    known = [tuple(noted["supervisor"]), *(tuple(who) for who in noted["processes"])]
    below = [who for one in known for who in processes.descendants(one)]
    living = [who for who in {*known, *below} if processes.alive(who)]
    processes.stop(living, grace=GRACE_SECONDS)
    return len(living)


def clean_environment() -> dict[str, str]:
    """This environment without MLflow's variables and without secrets: launchers export and log what they find."""
    return {name: value for name, value in os.environ.items() if not SECRET.search(name)}


def supervisor(job_file: Path, log: Path, node: int = 0, module: str = WORKER) -> "subprocess.Popen[bytes]":
    """Start the supervisor of a node, whose ranks run `module`; it ends when this process does."""
    parent = processes.identity()
    me = f"{parent[0]}:{parent[1]}"
    command = [sys.executable, "-m", "lora_select.training.supervisor.supervise", str(job_file), me, str(node), module]
    with log.open("ab") as stream:
        return subprocess.Popen(
            command,
            stdout=stream,
            stderr=stream,
            stdin=subprocess.DEVNULL,
            env=clean_environment(),
            start_new_session=True,
        )


def stop(process: "subprocess.Popen[bytes]") -> None:
    """Tell a supervisor to end its ranks; kill it when it takes longer than it may."""
    process.terminate()
    try:
        process.wait(GRACE_SECONDS + 10)
    except subprocess.TimeoutExpired:
        process.kill()


def _attempt(told: TrainingJob, folder: Path, report: Report | None) -> Failure | None:
    """Start the ranks once and wait for their end; None when they ended well."""
    heartbeat.clear(folder)
    job_file = job.write_job(folder, dataclasses.replace(told, attempt=job.last_attempt(folder) + 1))
    log = folder / job.LOG
    start, killed = log.stat().st_size if log.exists() else 0, processes.memory_kills()
    (folder / HEAD).touch()
    meter = energy.Meter(folder) if told.plan.nodes == 1 else None  # this machine's counters say nothing of another's
    process = supervisor(job_file, log)
    try:
        while process.poll() is None:
            (folder / HEAD).touch()
            show(folder, told.plan.total_steps, report)
            _read(meter)
            time.sleep(POLL_SECONDS)
    except BaseException:
        stop(process)
        reap(folder)
        raise
    finally:
        _read(meter, now=True)
    if process.returncode == 0:
        return None
    return failures.diagnose(folder, log, Ending(process.returncode, start, processes.memory_kills() - killed))


def _read(meter: energy.Meter | None, *, now: bool = False) -> None:
    """A full disk must not end the training for a number."""
    if meter is not None:
        with contextlib.suppress(OSError):
            meter.tick(now=now)


def _prepare(folder: Path, failure: Failure) -> None:
    """Put the folder into the state that the remedy starts from."""
    if failure.kind == failures.DISK_FULL:
        checkpoints.keep_newest(folder / job.CHECKPOINTS)
    if failure.kind == failures.DIVERGED:
        losses = [line["loss"] for line in metrics_until(folder / job.METRICS, failure.step)]
        if sanity.diverging(losses):
            checkpoints.discard_after(folder / job.CHECKPOINTS, sanity.last_good_step(losses))


@contextlib.contextmanager
def _alone_in(folder: Path, told: TrainingJob, report: Report | None) -> Iterator[None]:
    """Hold the folder's lock, which the kernel frees when its holder dies; while another has it, show its progress."""
    lock = FileLock(folder / ".training.lock")
    while True:
        try:
            lock.acquire(timeout=POLL_SECONDS)
            break
        except Timeout:
            show(folder, told.plan.total_steps, report)
    try:
        yield
    finally:
        lock.release()


def _say(folder: Path, text: str) -> None:
    with contextlib.suppress(OSError), (folder / job.LOG).open("a", encoding="utf-8") as stream:
        stream.write(text + "\n")
