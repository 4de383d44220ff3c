"""This process among the others: how it joins them and what it holds."""

import hashlib
import os
import random
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, final

from lora_select.records import TrainingPlan
from lora_select.training.heartbeat import Heartbeat
from lora_select.training.job import TrainingJob

COLLECTIVE_SHARE = 1.25
"""Longest collective over the watchdog's patience."""


@final
@dataclass
class Process:
    """This process among the others, and what it trains."""

    job: TrainingJob
    folder: Path
    rank: int
    world: int
    device: str
    beat: Heartbeat
    engine: Any = None
    pad_id: int = 0
    label_tokens: int = 0
    tokens: int = 0
    resumed: list[int] = field(default_factory=list)

    @property
    def plan(self) -> TrainingPlan:
        """The plan."""
        return self.job.plan

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0


def join(job: TrainingJob, folder: Path, heart: Heartbeat) -> Process:
    """Join the process group: gloo on CPU, NCCL on GPUs."""
    import torch

    on_gpu = job.plan.device == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(job.plan.threads_per_process)
    import deepspeed

    if not on_gpu:
        # DeepSpeed would compile a shared-memory reduction at first use (minutes, and a killed build leaves a lock on
        # which later runs hang). Gloo reduces a LoRA gradient in milliseconds.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(local)
    backend = "nccl" if on_gpu else "gloo"
    deepspeed.init_distributed(dist_backend=backend, verbose=False, timeout=_longest_collective(job))
    device = f"cuda:{local}" if on_gpu else "cpu"
    return Process(job, folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device, heart)


def limit_collectives(job: TrainingJob) -> None:
    """Give every process group the run's own limit; DeepSpeed makes its groups with PyTorch's, half an hour."""
    from torch.distributed import distributed_c10d

    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(_longest_collective(job), group)


def _longest_collective(job: TrainingJob) -> timedelta:
    """The watchdog, which shows the stacks of all ranks, comes first; this ends ranks whose watchdog sees one of them move."""
    return timedelta(seconds=COLLECTIVE_SHARE * job.patience_seconds)


def seed_start(seed: int) -> None:
    """Seed the building of the model: the same on all ranks, because they must build the same adapter."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)


def seed_micro_batch(seed: int, step: int, slot: int) -> None:
    """Make the random numbers (dropout) of a micro-batch a function of seed, step and its place in the step alone.

    So a resumed run draws what the uninterrupted one drew, whatever the number of ranks, and no generator's state has to
    be kept. `slot` counts the micro-batches of a step over all ranks.
    """
    import torch

    value = int.from_bytes(hashlib.sha256(f"{seed}:{step}:{slot}".encode()).digest()[:8], "big")
    random.seed(value)
    torch.manual_seed(value)
