"""Starting a training run and waiting for its result; what a killed run left behind is ended or taken up."""

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lora_select import records
from lora_select.errors import WorldError
from lora_select.records import Adapter
from lora_select.training import job, watch
from lora_select.training.job import TrainingJob
from lora_select.training.supervise import GRACE_SECONDS, ORPHANED, STUCK

Progress = Callable[[int, int, str], None]
POLL_SECONDS = 0.5
LOG_LINES = 15
SECRET = re.compile(r"TOKEN|PASSWORD|SECRET|CREDENTIAL|_KEY$|^MLFLOW_", re.IGNORECASE)


def train(told: TrainingJob, folder: Path, *, progress: Progress | None = None) -> Adapter:
    """Train in supervised rank processes; returns when `result.json` is there and its files verify.

    A folder that holds checkpoints of a killed run is resumed. Processes that such a run left are ended first.

    Args:
        told: what to train.
        folder: the run's folder; the same folder resumes.
        progress: called with (step, steps, loss, speed and time left).

    Raises:
        WorldError: the ranks ended without a result; the message holds the log's last lines.
    """
    if adapter := finished(folder):
        return adapter
    reap(folder)
    job_file = job.write_job(folder, told)
    parent = watch.identity()
    command = [sys.executable, "-m", "lora_select.training.supervise", str(job_file), f"{parent[0]}:{parent[1]}"]
    with (folder / job.LOG).open("ab") as log:
        supervisor = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=clean_environment(), start_new_session=True
        )
    try:
        while supervisor.poll() is None:
            _show(folder, told.plan.total_steps, progress)
            time.sleep(POLL_SECONDS)
    except BaseException:
        supervisor.terminate()
        try:
            supervisor.wait(GRACE_SECONDS + 10)
        except subprocess.TimeoutExpired:
            supervisor.kill()
        reap(folder)
        raise
    adapter = finished(folder)
    if adapter is None:
        reap(folder)
        raise WorldError(_why(supervisor.returncode, folder, told))
    return adapter


def finished(folder: Path) -> Adapter | None:
    """The result of a finished run, or None; the exit code of a launcher is never asked."""
    result = folder / job.RESULT
    if not result.is_file():
        return None
    adapter = records.read(Adapter, result)
    for file in (*adapter.files, adapter.probe_file):
        path = folder / file.path
        if not path.is_file() or records.sha256_file(path) != file.sha256:
            result.unlink()
            return None
    return adapter


def reap(folder: Path) -> int:
    """End what an earlier run in this folder left alive; returns how many processes that were."""
    try:
        noted = json.loads((folder / job.LAUNCH).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0
    known = [tuple(noted["supervisor"]), *(tuple(who) for who in noted["processes"])]
    below = [who for one in known for who in watch.descendants(one)]
    living = [who for who in {*known, *below} if watch.alive(who)]
    watch.stop(living, grace=GRACE_SECONDS)
    return len(living)


def clean_environment() -> dict[str, str]:
    """This environment without MLflow's variables and without secrets: launchers export and log what they find."""
    return {name: value for name, value in os.environ.items() if not SECRET.search(name)}


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The whole lines of the metrics file so far."""
    path = folder / job.METRICS
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def _show(folder: Path, total: int, progress: Progress | None) -> None:
    if progress is None:
        return
    steps = read_metrics(folder)
    if not steps:
        progress(0, total, "starting the ranks")
        return
    recent = steps[-20:]
    seconds = sum(step["tokens"] / step["tokens_per_second"] for step in recent)
    speed = sum(step["tokens"] for step in recent) / seconds
    left = (total - steps[-1]["step"]) * seconds / len(recent)
    text = f"loss {steps[-1]['loss']:.3f}  {speed:,.0f} tokens/s  {int(left // 60)}:{int(left % 60):02d} left"
    progress(int(steps[-1]["step"]), total, text)


def _why(code: int, folder: Path, told: TrainingJob) -> str:
    reasons = {
        STUCK: f"no step came for {told.patience_seconds:g} s",
        ORPHANED: "the process that started it is gone",
    }
    reason = reasons.get(code, f"the ranks ended with code {code}")
    lines = (folder / job.LOG).read_text(encoding="utf-8", errors="replace").splitlines()
    errors = [line for line in lines if re.match(r"(\[rank\d+\]: ?)?[\w.]*(Error|Exception|InputError)\b", line)]
    shown = "\n  ".join(errors[-2:] or lines[-LOG_LINES:])
    return f"training did not finish: {reason}; the same command resumes from the last checkpoint.\n  {shown}\n  log: {folder / job.LOG}"
