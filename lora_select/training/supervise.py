"""The process between the flow and torchrun: `python -m lora_select.training.supervise job.json PARENT_PID:CREATED`.

It lives in a session of its own, starts torchrun, remembers every process below it (torchrun gives its ranks sessions of
their own, so killing a process group would miss them), and ends them all when it is told to, when its parent is gone, or
when no step has come for too long.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import FrameType

from lora_select.records import write_text
from lora_select.training import job, watch
from lora_select.training.worker import SUPERVISOR

GRACE_SECONDS = 15.0
STUCK = 75
ORPHANED = 76


def main(job_file: Path, parent: watch.Identity) -> int:
    """Run torchrun to its end; returns its exit code, or STUCK or ORPHANED when it had to be ended."""
    told = job.read_job(job_file)
    folder = job_file.parent
    stopping: list[int] = []

    def on_signal(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, on_signal)
    me = watch.identity()
    with (folder / job.LOG).open("ab") as log:
        child = subprocess.Popen(_command(job_file, told), stdout=log, stderr=log, env=_environment(me, told))
    seen = {watch.identity(child.pid)} if child.poll() is None else set()
    _note(folder, me, seen)
    last = _Progress(folder / job.METRICS)
    code: int | None = None
    try:
        while code is None and (code := child.poll()) is None:
            new = set(watch.descendants(me)) - seen
            if new:
                seen |= new
                _note(folder, me, seen)
            if stopping:
                code = 128 + stopping[0]
            elif not watch.alive(parent):
                code = ORPHANED
            elif last.stands_still(told.patience_seconds):
                _dump_stacks(seen, folder)
                code = STUCK
            else:
                time.sleep(0.5)
    finally:
        watch.stop(seen | set(watch.descendants(me)), grace=GRACE_SECONDS)
    return code


def _command(job_file: Path, told: job.TrainingJob) -> list[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--max-restarts", "0"]
    ranks = ["--nproc-per-node", str(told.plan.num_processes)]
    return [*launcher, *ranks, "-m", "lora_select.training.worker", str(job_file)]


def _environment(me: watch.Identity, told: job.TrainingJob) -> dict[str, str]:
    return os.environ | {
        SUPERVISOR: f"{me[0]}:{me[1]}",
        "OMP_NUM_THREADS": str(told.plan.threads_per_process),
        "PYTHONUNBUFFERED": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
    }


class _Progress:
    """Notices when the metrics file has not grown for too long."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = -1
        self._since = time.monotonic()

    def stands_still(self, patience: float) -> bool:
        size = self._path.stat().st_size if self._path.exists() else 0
        if size != self._size:
            self._size, self._since = size, time.monotonic()
        return time.monotonic() - self._since > patience


def _dump_stacks(seen: set[watch.Identity], folder: Path) -> None:
    """Ask the ranks for their stacks (they write them to the log) before they are ended."""
    with (folder / job.LOG).open("a", encoding="utf-8") as log:
        log.write("no step for too long; stacks of the ranks follow\n")
    for who in seen:
        if watch.alive(who) and b"lora_select.training.worker" in Path(f"/proc/{who[0]}/cmdline").read_bytes():
            os.kill(who[0], signal.SIGUSR1)
    time.sleep(2)


def _note(folder: Path, me: watch.Identity, seen: set[watch.Identity]) -> None:
    write_text(folder / job.LAUNCH, json.dumps({"supervisor": list(me), "processes": sorted(seen)}) + "\n")


if __name__ == "__main__":
    pid, created = sys.argv[2].split(":")
    sys.exit(main(Path(sys.argv[1]), (int(pid), float(created))))
