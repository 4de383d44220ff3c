"""This process among the others: how it joins them and what it holds."""

import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from lora_select.records import TrainingPlan
from lora_select.training.job import TrainingJob


@final
@dataclass
class Rank:
    """This process among the others, and what it trains."""

    job: TrainingJob
    folder: Path
    rank: int
    world: int
    device: str
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


def join(told: TrainingJob, folder: Path) -> Rank:
    """Join the process group: gloo on CPU, NCCL on GPUs."""
    import torch

    on_gpu = told.plan.device == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(told.plan.threads_per_process)
    import deepspeed

    if not on_gpu:
        # DeepSpeed would compile a shared-memory reduction at first use (minutes, and a killed build leaves a lock on
        # which later runs hang). Gloo reduces a LoRA gradient in milliseconds.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(local)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    device = f"cuda:{local}" if on_gpu else "cpu"
    return Rank(told, folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def seed_everything(seed: int) -> None:
    """Seed this process."""
    import torch

    random.seed(seed)
    torch.manual_seed(seed)  # the same on all ranks: they must build the same adapter
