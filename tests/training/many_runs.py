"""Several training jobs one after another in the same ranks: `torchrun ... many_runs.py job.json job.json ...`.

Starting ranks costs far more than training a tiny model; the code of a job is the worker's own.
"""

import gc
import sys
from pathlib import Path

from lora_select.training import worker
from lora_select.training.beat import Heart

if __name__ == "__main__":
    import os

    for path in map(Path, sys.argv[1:]):
        worker.work(path, Heart(path.parent, int(os.environ["RANK"])))
        gc.collect()
