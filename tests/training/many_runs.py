"""Several training jobs one after another in the same ranks: `torchrun ... many_runs.py job.json job.json ...`.

Starting ranks costs far more than training a tiny model; the code of a job is the worker's own.
"""

import gc
import subprocess
import sys
from pathlib import Path

from lora_select.training.heartbeat import Heartbeat
from lora_select.training.worker import main


def torchrun(ranks: int, files: list[Path]) -> None:
    """Train the jobs in so many ranks."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    command = [sys.executable, *launcher, __file__, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-4000:]


if __name__ == "__main__":
    import os

    for path in map(Path, sys.argv[1:]):
        main.work(path, Heartbeat(path.parent, int(os.environ["RANK"])))
        gc.collect()
