"""One rank: `python -m lora_select.training.worker.main job.json` under torchrun. CPU ranks over gloo, GPU ranks over NCCL."""

import faulthandler
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from lora_select import environment, models
from lora_select.training import failures, job, processes
from lora_select.training.heartbeat import Heartbeat
from lora_select.training.worker import batches, deepspeed_engine, loop, resume
from lora_select.training.worker.process import join, seed_start
from lora_select.training.worker.result import finish
from lora_select.training.worker.validate import Watch


def main(job_file: Path) -> None:
    """Train as the job says; `result.json` is written last, by rank 0, and only then is the run a success."""
    as_rank(work, job_file)


def as_rank(work: Callable[[Path, Heartbeat], None], job_file: Path) -> None:
    """Do a rank's work: it ends with its supervisor, shows its stacks when it is asked to, and leaves an account of a failure."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if processes.SUPERVISOR in os.environ:
        pid, created = os.environ[processes.SUPERVISOR].split(":")
        processes.die_with((int(pid), float(created)))
    number = int(os.environ["RANK"])
    heart = Heartbeat(job_file.parent, number)
    try:
        environment.leave_out(job.read_job(job_file).quantized_base)
        work(job_file, heart)
    except BaseException as error:
        failures.report(job_file.parent, number, heart, error)
        raise


def work(job_file: Path, heart: Heartbeat) -> None:
    """Join, build, take up what was done, do the steps, finish."""
    started = time.monotonic()
    heart("joining")
    rank = join(job.read_job(job_file), job_file.parent, heart)
    heart("loading")
    rows, kept = batches.rows_of(rank.job)
    rank.pad_id = models.pad_id(models.load_tokenizer(rank.job.base_path))
    first = resume.find(rank)
    seed_start(rank.plan.seed)
    rank.engine = deepspeed_engine.build(rank, first, rows)
    resume.cut_metrics(rank, first)
    watch = Watch(rank, kept, first)
    loss, last = loop.train(rank, rows, watch, first)
    finish(rank, loss, last, watch.choose(last), time.monotonic() - started)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
