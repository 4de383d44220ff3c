"""The machine that trains: devices, cores and memory, as they are found."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

from lora_select import environment
from lora_select.errors import InputError

GIB = 2**30
"""Bytes."""


@final
@dataclass(frozen=True)
class Machine:
    """What training may use: `device` is `cpu` or `cuda`; memory of one device (the whole machine for a CPU) in GiB."""

    device: Literal["cpu", "cuda"]
    devices: int
    cores: int
    memory_gib: float
    fast_bf16: bool

    def times(self, nodes: int) -> "Machine":
        """So many of these machines together; memory is that of one device, or of all machines for CPUs."""
        memory = self.memory_gib * (nodes if self.device == "cpu" else 1)
        return Machine(self.device, self.devices * nodes, self.cores * nodes, memory, self.fast_bf16)


def detect_machine(device: str = "auto") -> Machine:
    """The machine as it is; `device` is `auto`, `cpu` or `cuda`.

    Raises:
        InputError: `cuda` is wanted and there is none.
    """
    import psutil

    gpus = _gpus()
    if device == "cuda" and not gpus:
        raise InputError("`training.device` is cuda but torch sees no GPU; install with TORCH=cuda, or set it to cpu")
    cores = len(os.sched_getaffinity(0))
    if gpus and device != "cpu":
        import torch

        memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(gpus)) / GIB
        return Machine("cuda", gpus, cores, round(memory, 1), torch.cuda.is_bf16_supported())
    return Machine("cpu", 1, cores, round(psutil.virtual_memory().total / GIB, 1), _cpu_has_fast_bf16())


def has_gpu() -> bool:
    """Whether torch can train on a GPU here."""
    return _gpus() > 0


def _gpus() -> int:
    if not environment.may_have_gpu():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _cpu_has_fast_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags
