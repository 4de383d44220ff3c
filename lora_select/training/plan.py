"""The plan: ranks, ZeRO stage, micro-batch and accumulation for a fixed effective batch; memory and time beforehand."""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lora_select.errors import InputError
from lora_select.records import AdapterSpec, BaseModel, DatasetProfile, Range, TrainingPlan
from lora_select.training.batches import total_steps

GIB = 2**30
PROCESS_GIB = 0.9
"""Resident size of a CPU rank with torch, DeepSpeed, transformers and PEFT imported and no model (measured: 0.8 to 1.0)."""
CUDA_CONTEXT_GIB = 1.0
CPU_FLOPS_PER_CORE = {"fp32": 6e10, "bf16": 9e10}
"""Sustained rate of a training step on one core (measured on small models; the time range covers a factor of two)."""
GPU_FLOPS = 1e14
FLOPS_PER_PARAMETER_AND_TOKEN = 4.5
"""2 forward, 2 backward through frozen weights, and the adapter's own part; full training would be 6."""
RANK_START_SECONDS = 20.0
DEFAULT_MICRO_BATCH = 8


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
    import torch

    has_gpu = torch.cuda.is_available()
    if device == "cuda" and not has_gpu:
        raise InputError("`training.device` is cuda but torch sees no GPU; install with TORCH=cuda, or set it to cpu")
    cores = len(os.sched_getaffinity(0))
    if has_gpu and device != "cpu":
        memory = min(torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())) / GIB
        return Machine("cuda", torch.cuda.device_count(), cores, round(memory, 1), torch.cuda.is_bf16_supported())
    return Machine("cpu", 1, cores, round(psutil.virtual_memory().total / GIB, 1), _cpu_has_fast_bf16())


def make_plan(
    profile: DatasetProfile, spec: AdapterSpec, base: BaseModel, machine: Machine, wanted: Mapping[str, Any]
) -> TrainingPlan:
    """Decide how to train; pure.

    Args:
        profile: rows and tokens.
        spec: the adapter; its rate is the plan's.
        base: the base model.
        machine: from :func:`detect_machine`.
        wanted: the config's `training` section as a mapping, and `seed`.

    Raises:
        InputError: the settings contradict each other, or the model does not fit; names the value and the way out.
    """
    reasons: list[str] = []
    nodes = int(wanted.get("nodes", 1))
    machine = machine.times(nodes)
    ranks = _ranks(machine, wanted, reasons)
    batch = int(wanted["effective_batch_size"])
    rows = profile.train.rows - profile.train.rows_without_labels
    if batch < ranks:
        raise InputError(
            f"`training.effective_batch_size` {batch} is smaller than the {ranks} ranks; raise it or lower `training.num_processes`"
        )
    micro, accumulation = _micro_batch(batch, ranks, wanted["micro_batch_size"])
    precision = _precision(machine, wanted["precision"], spec, reasons)
    longest = min(profile.max_length, profile.train.length.maximum)
    stage, memory = _stage(machine, wanted["zero_stage"], ranks, base, spec, micro * longest, precision, reasons)
    steps = total_steps(rows, float(wanted["epochs"]), batch, wanted["max_steps"])
    reasons.append(
        f"{rows} rows, {wanted['epochs']:g} epochs, {batch} rows a step: {steps} steps; {ranks} ranks x {micro} rows x "
        f"{accumulation} micro-batches"
    )
    return TrainingPlan(
        device=machine.device,
        num_processes=ranks,
        zero_stage=stage,
        precision=precision,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        effective_batch_size=batch,
        epochs=float(wanted["epochs"]),
        total_steps=steps,
        warmup_steps=round(steps * float(wanted["warmup_fraction"])),
        learning_rate=spec.learning_rate,
        lr_schedule=wanted["lr_schedule"],
        weight_decay=float(wanted["weight_decay"]),
        max_grad_norm=float(wanted["max_grad_norm"]),
        checkpoint_every=int(wanted["checkpoint_every"]),
        keep_checkpoints=int(wanted["keep_checkpoints"]),
        gradient_checkpointing=False,
        seed=int(wanted["seed"]),
        threads_per_process=max(1, machine.cores // ranks) if machine.device == "cpu" else 1,
        memory_gib=memory,
        minutes=_minutes(machine, base, profile, steps * batch / max(1, rows), ranks, precision),
        disk_gib=round((int(wanted["keep_checkpoints"]) + 1) * 12 * spec.num_parameters / GIB + 0.1, 3),
        reasons=tuple(reasons),
        nodes=nodes,
    )


def check_disk(plan: TrainingPlan, folder: Path) -> None:
    """Refuse to start what would fill the disk.

    Raises:
        InputError: less is free than checkpoints and adapter will take.
    """
    free = shutil.disk_usage(folder).free / GIB
    if free < plan.disk_gib + 0.5:
        raise InputError(
            f"training needs about {plan.disk_gib + 0.5:.1f} GiB in {folder}, {free:.1f} are free; free some, set `runs_dir`, "
            "or lower `training.keep_checkpoints`"
        )


def _cpu_has_fast_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _ranks(machine: Machine, wanted: Mapping[str, Any], reasons: list[str]) -> int:
    asked = wanted["num_processes"]
    if machine.device == "cuda":
        if asked == "auto":
            return machine.devices
        if asked > machine.devices:
            raise InputError(f"`training.num_processes` {asked} is over the {machine.devices} GPUs here; lower it")
        return int(asked)
    if asked == "auto":
        ranks = min(2, machine.cores, int(wanted["effective_batch_size"]))
        reasons.append(f"{ranks} CPU ranks over gloo: the code path of several GPUs")
        return ranks
    if asked > machine.cores:
        raise InputError(f"`training.num_processes` {asked} is over the {machine.cores} cores here; lower it")
    return int(asked)


def _micro_batch(batch: int, ranks: int, asked: int | None) -> tuple[int, int]:
    """Micro-batch and accumulation with ranks x micro x accumulation = batch, the micro-batch as large as allowed."""
    if batch % ranks:
        raise InputError(
            f"`training.effective_batch_size` {batch} is no multiple of the {ranks} ranks; use {batch - batch % ranks} or "
            f"{batch + ranks - batch % ranks}, or another `training.num_processes`"
        )
    share = batch // ranks
    limit = asked or DEFAULT_MICRO_BATCH
    if asked and share % asked:
        raise InputError(
            f"`training.micro_batch_size` {asked} does not divide the {share} rows of each rank "
            f"(`training.effective_batch_size` {batch} over {ranks} ranks)"
        )
    micro = max(size for size in range(1, min(limit, share) + 1) if share % size == 0)
    return micro, share // micro


def _precision(machine: Machine, asked: str, spec: AdapterSpec, reasons: list[str]) -> str:
    if asked == "auto":
        asked = "bf16" if machine.fast_bf16 else "fp32"
        where = "has bf16 instructions" if machine.fast_bf16 else "has no bf16 instructions"
        reasons.append(f"{asked}: this {machine.device} {where}")
    if asked == "bf16" and spec.init == "pissa":
        reasons.append("the base stays in fp32: PiSSA's residual would be rounded in bf16")
        return "fp32"
    return asked


def _stage(
    machine: Machine,
    asked: int | str,
    ranks: int,
    base: BaseModel,
    spec: AdapterSpec,
    tokens: int,
    precision: str,
    reasons: list[str],
) -> tuple[int, Range]:
    """The lowest ZeRO stage whose expected memory fits, or the one that is asked for."""
    available = machine.memory_gib / (ranks if machine.device == "cpu" else 1)
    stages = [0, 2, 3] if asked == "auto" else [int(asked)]
    needs = [memory(base, spec, tokens, precision, stage, ranks, machine.device) for stage in stages]
    for stage, need in zip(stages, needs, strict=True):
        if need.expected <= available:
            reasons.append(
                f"ZeRO-{stage}: {need.expected:.1f} GiB a rank (up to {need.high:.1f}) of {available:.1f} GiB"
            )
            return stage, need
    raise InputError(
        f"the model needs about {needs[-1].expected:.1f} GiB a rank at ZeRO-{stages[-1]}, {available:.1f} are there; lower "
        "`training.micro_batch_size` or `dataset.max_length`, use bf16, or take more GPUs"
    )


def memory(
    base: BaseModel, spec: AdapterSpec, tokens: int, precision: str, stage: int, ranks: int, device: str
) -> Range:
    """Peak memory of one rank in GiB, with `tokens` tokens in a micro-batch.

    Weights 2 or 4 bytes a parameter; adapter 16 (fp32 weight, gradient, two Adam moments); activations about 34 hidden
    sizes a token and layer in half precision (Korthikanti et al. 2022, eq. 2, without attention scores, which SDPA does
    not keep), twice that in fp32; logits three copies of the vocabulary at the label positions, at most half of the tokens.
    ZeRO-1 splits the moments, 2 the gradients too, 3 the weights as well.
    """
    size = 2 if precision == "bf16" else 4
    weights = base.num_parameters * size / (ranks if stage == 3 else 1)
    moments = 8 * spec.num_parameters / (ranks if stage >= 1 else 1)
    gradients = 4 * spec.num_parameters / (ranks if stage >= 2 else 1)
    activations = tokens * base.num_hidden_layers * base.hidden_size * 17 * size
    logits = tokens / 2 * base.vocab_size * 4 * 3
    fixed = PROCESS_GIB if device == "cpu" else CUDA_CONTEXT_GIB
    low = fixed + (weights + moments + gradients + 4 * spec.num_parameters) / GIB
    expected = low + (activations + logits) / GIB
    return Range(round(low, 2), round(expected, 2), round(1.3 * expected + 0.5, 2))


def _minutes(
    machine: Machine, base: BaseModel, profile: DatasetProfile, epochs: float, ranks: int, precision: str
) -> Range:
    tokens = profile.train.tokens * epochs
    speed = GPU_FLOPS * ranks if machine.device == "cuda" else CPU_FLOPS_PER_CORE[precision] * machine.cores
    seconds = tokens * FLOPS_PER_PARAMETER_AND_TOKEN * base.num_parameters / speed
    low, expected, high = (RANK_START_SECONDS + factor * seconds for factor in (0.6, 1.0, 2.0))
    return Range(round(low / 60, 2), round(expected / 60, 2), round(high / 60, 2))
