"""Several training jobs one after another in the same ranks: `torchrun ... many_runs.py job.json job.json ...`.

Starting ranks costs far more than training a tiny model; the code of a job is the worker's own.
"""

import gc
import json
import shutil
import subprocess
import sys
from pathlib import Path

from lora_select import environment
from lora_select.training.heartbeat import Heartbeat
from lora_select.training.job import CHECKPOINTS, RESULT
from lora_select.training.worker import checkpoints, main

KILLED = "killed.json"
"""In a job's folder: it is that of a finished run of before, as a kill after some step would have left it."""


def torchrun(ranks: int, files: list[Path]) -> None:
    """Train the jobs in so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *launcher, __file__, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]


def killed(job_file: Path, run: Path, after: int) -> Path:
    """Let the job find what is left of the finished `run` when it is killed after a step."""
    (job_file.parent / KILLED).write_text(json.dumps({"run": str(run), "step": after}))
    return job_file


def leave_killed(folder: Path) -> None:
    """What :func:`killed` told; files of the job itself stay."""
    told = json.loads((folder / KILLED).read_text())
    own = {file.name for file in folder.iterdir()}
    shutil.copytree(told["run"], folder, dirs_exist_ok=True, ignore=lambda at, _: own if at == told["run"] else set())
    (folder / RESULT).unlink()
    checkpoints.discard_after(folder / CHECKPOINTS, told["step"])


if __name__ == "__main__":
    import os

    import torch

    environment.leave_out(None)
    for path in map(Path, sys.argv[1:]):
        if (path.parent / KILLED).is_file():
            if os.environ["RANK"] == "0":
                leave_killed(path.parent)
            torch.distributed.barrier()
        main.work(path, Heartbeat(path.parent, int(os.environ["RANK"])))
        gc.collect()
