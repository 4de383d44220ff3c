"""The agent of another node: joins every training run that begins in a shared folder.

The flow runs on the first node. On each of the others `lora-select node runs --number K` waits for the jobs that the flow
writes, starts this node's ranks for each attempt, and ends them when the attempt or the flow is gone.
"""

import contextlib
import time
from pathlib import Path

from lora_select.errors import InputError
from lora_select.training import job
from lora_select.training.supervisor import launch

POLL_SECONDS = 0.5
HEAD_PATIENCE_SECONDS = 60.0
"""The launcher touches a file twice a second; when that is older than this, the launcher is taken for dead."""


def serve(runs: Path, number: int) -> None:
    """Join runs below `runs` as node `number` (1 is the second node) until this process is ended.

    Raises:
        InputError: the folder is not there, or the number is that of the first node.
    """
    if number < 1:
        raise InputError(f"--number is {number}; the first node (0) runs the flow, the others are 1, 2, ...")
    if not runs.is_dir():
        raise InputError(f"{runs} is no folder; name the `runs_dir` of the flow, on a file system that the nodes share")
    joined: dict[Path, int] = {}
    while True:
        for folder in waiting(runs, number, joined):
            joined[folder] = job.last_attempt(folder)
            print(f"node {number}: joins attempt {joined[folder]} of {folder}", flush=True)
            code = join(folder, number)
            print(f"node {number}: attempt {joined[folder]} ended with code {code}", flush=True)
        time.sleep(POLL_SECONDS)


def waiting(runs: Path, number: int, joined: dict[Path, int]) -> list[Path]:
    """Folders whose present attempt wants this node and was not joined yet."""
    found = []
    for file in (runs / job.JOB, *runs.glob(f"stages/*/*/{job.JOB}")):
        folder = file.parent
        if (folder / job.RESULT).exists() or not file.exists() or not _head_lives(folder, number):
            continue
        with contextlib.suppress(OSError, ValueError):
            told = job.read_job(file)
            if told.rendezvous and number < told.plan.nodes and joined.get(folder) != told.attempt:
                found.append(folder)
    return found


def join(folder: Path, number: int) -> int:
    """Run this node's ranks for the present attempt; returns the supervisor's exit code."""
    launch.reap(folder, number)
    attempt = job.last_attempt(folder)
    process = launch.supervisor(folder / job.JOB, folder / job.node_file(job.LOG, number), number)
    try:
        while process.poll() is None:
            if not _head_lives(folder, number) or job.last_attempt(folder) != attempt:
                launch.stop(process)
            time.sleep(POLL_SECONDS)
    finally:
        if process.poll() is None:
            launch.stop(process)
        launch.reap(folder, number)
    return process.returncode


def _head_lives(folder: Path, number: int) -> bool:
    """Compares two times of the shared file system, so that clocks of nodes need not agree."""
    mine = folder / f".node-{number}"
    try:
        mine.touch()
        return mine.stat().st_mtime - (folder / launch.HEAD).stat().st_mtime < HEAD_PATIENCE_SECONDS
    except OSError:
        return False
