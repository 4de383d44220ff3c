"""The plan: ranks, ZeRO stage, micro-batch and accumulation for a fixed effective batch; memory and time beforehand."""

import dataclasses
import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_select.data.labels.tokens import TokenRow, read_rows
from lora_select.errors import InputError
from lora_select.initialization import changes_base
from lora_select.records import AdapterSpec, BaseModel, DatasetProfile, Range, Replay, TrainingPlan
from lora_select.training import validation
from lora_select.training.job import TrainingJob
from lora_select.training.machine import GIB, Machine
from lora_select.training.planning import fit, memory
from lora_select.training.planning.measure import Measured, measure
from lora_select.training.worker.batches import total_steps

CPU_FLOPS_PER_CORE = {"fp32": 6e10, "bf16": 9e10}
"""Sustained rate of a training step on one core, used only where nothing could be measured."""
GPU_FLOPS = 1e14
FLOPS_PER_PARAMETER_AND_TOKEN = 4.5
"""2 forward, 2 backward through frozen weights, and the adapter's own part; full training would be 6."""
RANK_START_SECONDS = 20.0
MEASURED_SPREAD = (0.85, 1.0, 1.6)
"""Low, expected and high time around a measured speed: ranks on one machine share its memory's bandwidth."""
COMPUTED_SPREAD = (0.6, 1.0, 2.0)
DEEPSPEED_GIB = 0.12
"""What DeepSpeed adds to a rank on a CPU once it is imported (measured)."""


def make_plan(
    profile: DatasetProfile,
    spec: AdapterSpec,
    base: BaseModel,
    machine: Machine,
    wanted: Mapping[str, Any],
    rows: Sequence[TokenRow] | None = None,
    measured: Measured | str | None = None,
    replay: Replay | None = None,
) -> TrainingPlan:
    """Decide how to train; pure.

    Args:
        profile: rows and tokens.
        spec: the adapter; its rate is the plan's.
        base: the base model.
        machine: from :func:`detect_machine`.
        wanted: the config's `training` section as a mapping, `seed`, and `quantize`: `nf4`, `int8` or None.
        replay: reference text that is trained on beside the task's rows.
        rows: the rows that will be trained on; without them every micro-batch is taken to hold rows of the largest length.
        measured: what a rank did here with the plan that this function made without it, or why there is nothing.

    Raises:
        InputError: the settings contradict each other, or the model does not fit; names the value and the way out.
    """
    reasons: list[str] = []
    nodes = int(wanted.get("nodes", 1))
    machine = machine.times(nodes)
    ranks = _ranks(machine, wanted, reasons)
    batch = int(wanted["batch_size"])
    usable = profile.train.trained
    kept = kept_for_validation(profile, float(wanted.get("validation", 0.0)))
    count = usable - kept + (replay.rows if replay else 0)
    epochs, auto = validation.most_epochs(wanted["epochs"]), wanted["epochs"] == validation.AUTO
    if auto and wanted.get("validation") and not kept:
        raise InputError(
            f"`training.epochs` is auto, which looks at rows kept from training, and {usable} rows are too few to keep any; set a number"
        )
    if batch < ranks:
        raise InputError(
            f"`training.batch_size` {batch} is smaller than the {ranks} ranks; raise it or lower `training.num_processes`"
        )
    sizes = fit.micro_batches(batch, ranks, machine.device, wanted["micro_batch_size"])
    steps = total_steps(count, epochs, batch, wanted["max_steps"])
    warmed = min(steps, total_steps(count, 1.0, batch, None)) if auto else steps
    precision = _precision(machine, wanted["precision"], spec, reasons)
    draft = TrainingPlan(
        device=machine.device,
        num_processes=ranks,
        zero_stage=0,
        precision=precision,
        micro_batch_size=sizes[0],
        gradient_accumulation_steps=batch // ranks // sizes[0],
        effective_batch_size=batch,
        epochs=epochs,
        total_steps=steps,
        warmup_steps=round(warmed * float(wanted["warmup_fraction"])),
        learning_rate=spec.learning_rate,
        lr_schedule=wanted["lr_schedule"],
        weight_decay=float(wanted["weight_decay"]),
        max_grad_norm=float(wanted["max_grad_norm"]),
        checkpoint_every=int(wanted["checkpoint_every"]),
        keep_checkpoints=int(wanted["keep_checkpoints"]),
        gradient_checkpointing=False,
        seed=int(wanted["seed"]),
        threads_per_process=max(1, machine.cores // ranks) if machine.device == "cpu" else 1,
        memory_gib=Range(0, 0, 0),
        minutes=_minutes(machine, base, profile, steps * batch / max(1, usable), ranks, precision, measured),
        disk_gib=round((int(wanted["keep_checkpoints"]) + 1) * 12 * spec.num_parameters / GIB + 0.1, 3),
        reasons=(),
        packing=_packing(wanted["packing"], measured, reasons),
        nodes=nodes,
        validation_rows=kept,
        validation_every=_validation_every(profile, kept, usable, steps, batch, epochs) if kept else 0,
        patience=int(wanted.get("patience") or 0) if kept else 0,
        replay=replay,
    )
    available = machine.memory_gib / (ranks if machine.device == "cpu" else 1)
    longest = min(profile.max_length, profile.train.length.maximum)
    plan = fit.fitted(draft, base, spec, available, wanted, rows if rows else longest)
    reasons.append(
        f"{count} rows, {epochs:g} epochs, {batch} rows a step: {steps} steps; {ranks} ranks x {plan.micro_batch_size} rows x "
        f"{plan.gradient_accumulation_steps} micro-batches"
    )
    if replay:
        again = f", {replay.distinct} different" if replay.distinct < replay.rows else ""
        reasons.append(
            f"{replay.rows} of the rows are reference text that is trained on beside the task{again}: {replay.tokens:,} tokens of "
            f"{', '.join(replay.rows_of)}"
        )
    if kept:
        reasons.append(
            f"{kept} more rows are kept from training and looked at before the first step and every {plan.validation_every} steps"
        )
    if auto:
        end = f"when {plan.patience} looks were worse than the best" if plan.patience else "at the last of them"
        reasons.append(
            f"`epochs: auto`: training ends {end}; the schedule is that of {epochs:g} epochs, after the warm-up of the first"
        )
    return _with_measured(dataclasses.replace(plan, reasons=(*reasons, *plan.reasons)), spec, measured)


def replay_rows(rows: int, share: float) -> int:
    """Rows of reference text that are `share` of a training beside `rows` of the task.

    >>> replay_rows(190, 0.05), replay_rows(190, 0.0)
    (10, 0)
    """
    return math.ceil(share * rows / (1 - share))


def kept_for_validation(profile: DatasetProfile, share: float) -> int:
    """Training rows that are kept from training to validate with."""
    usable = profile.train.trained
    return validation.kept_rows(usable, share, profile.train.label_tokens / max(1, usable))


def _validation_every(profile: DatasetProfile, kept: int, rows: int, steps: int, batch: int, epochs: float) -> int:
    a_row = profile.train.tokens / max(1, rows)
    return validation.steps_between(round(kept * a_row), round(steps * batch * a_row), steps, epochs)


def planned(
    profile: DatasetProfile,
    spec: AdapterSpec,
    base: BaseModel,
    machine: Machine,
    training: Mapping[str, Any],
    tokens: Path,
    folder: Path,
    replay: tuple[Replay, Path] | None = None,
) -> TrainingPlan:
    """Plan, measure on this machine, plan again.

    Args:
        profile: rows and tokens.
        spec: the adapter.
        base: the base model.
        machine: where training runs.
        training: the config's `training` section as a mapping, and `seed`.
        tokens: the training rows' token file.
        folder: where the measurement works.
        replay: reference text that is trained on too, and its token file.

    Raises:
        InputError: the settings contradict each other, or the model does not fit.
    """
    known, file = replay or (None, None)
    rows = [*read_rows(tokens), *(read_rows(file) if file else [])]
    draft = make_plan(profile, spec, base, machine, training, rows, replay=known)
    job = TrainingJob(
        spec, draft, base.path, base.source, str(tokens), str(tokens),
        quantized_base=training.get("quantize"), replay_tokens=str(file) if file else None,
    )  # fmt: skip
    measured = measure(job, folder)
    return make_plan(profile, spec, base, machine, training, rows, measured, known)


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


def _ranks(machine: Machine, wanted: Mapping[str, Any], reasons: list[str]) -> int:
    asked = wanted["num_processes"]
    if machine.device == "cuda":
        if asked == "auto":
            return machine.devices
        if asked > machine.devices:
            raise InputError(f"`training.num_processes` {asked} is over the {machine.devices} GPUs here; lower it")
        return int(asked)
    if asked == "auto":
        ranks = min(2, machine.cores, int(wanted["batch_size"]))
        reasons.append(f"{ranks} CPU ranks over gloo: the code path of several GPUs")
        return ranks
    if asked > machine.cores:
        raise InputError(f"`training.num_processes` {asked} is over the {machine.cores} cores here; lower it")
    return int(asked)


def _precision(machine: Machine, asked: str, spec: AdapterSpec, reasons: list[str]) -> str:
    if asked == "auto":
        asked = "bf16" if machine.fast_bf16 else "fp32"
        where = "has bf16 instructions" if machine.fast_bf16 else "has no bf16 instructions"
        reasons.append(f"{asked}: this {machine.device} {where}")
    if asked == "bf16" and changes_base(spec.init):
        reasons.append(f"the base stays in fp32: what {spec.variant} leaves of it would be rounded in bf16")
        return "fp32"
    return asked


def _packing(asked: bool | str, measured: Measured | str | None, reasons: list[str]) -> bool:
    if asked is False:
        return False
    refusal = measured.refusal if isinstance(measured, Measured) else measured
    if refusal and asked is True:
        raise InputError(f"`training.packing` is true, but {refusal}; set it to auto or false")
    if refusal:
        reasons.append(refusal if isinstance(measured, Measured) else f"rows are padded, not packed: {refusal}")
        return False
    if measured:
        reasons.append(
            "rows are packed: losses and gradients of packed and single rows were compared on this model and agree"
        )
    return True


def _with_measured(plan: TrainingPlan, spec: AdapterSpec, measured: Measured | str | None) -> TrainingPlan:
    """The plan with the memory that a rank took here in place of the computed one, and a reason."""
    if not isinstance(measured, Measured):
        return plan
    speed = measured.tokens / measured.seconds
    reason = (
        f"measured here: {speed:,.0f} tokens/s a rank over {measured.tokens} tokens, peak {measured.peak_gib:.2f} GiB at the heaviest "
        f"micro-batch of {measured.heaviest_tokens} tokens"
    )
    need = measured.peak_gib + (0.0 if plan.device == "cpu" else memory.PROCESS_GIB["cuda"])
    if not measured.ranks:  # one process has no optimizer's state and has not loaded DeepSpeed
        state = memory.optimizer_bytes(spec.num_parameters, plan.zero_stage, plan.num_processes) / GIB
        need += state + (DEEPSPEED_GIB if plan.device == "cpu" else 0.0)
    split = plan.zero_stage == 3 and not measured.ranks  # over several nodes: what one process takes says nothing
    known = plan.memory_gib if split else Range(*(round(need * factor, 2) for factor in (0.9, 1.0, 1.15)))
    return dataclasses.replace(plan, memory_gib=known, reasons=(*plan.reasons, reason))


def _minutes(
    machine: Machine,
    base: BaseModel,
    profile: DatasetProfile,
    epochs: float,
    ranks: int,
    precision: str,
    measured: Measured | str | None,
) -> Range:
    tokens = profile.train.tokens * epochs
    if isinstance(measured, Measured):
        seconds, spread = tokens * measured.seconds / (measured.tokens * ranks), MEASURED_SPREAD
    else:
        speed = GPU_FLOPS * ranks if machine.device == "cuda" else CPU_FLOPS_PER_CORE[precision] * machine.cores
        seconds, spread = tokens * FLOPS_PER_PARAMETER_AND_TOKEN * base.num_parameters / speed, COMPUTED_SPREAD
    low, expected, high = (round((RANK_START_SECONDS + factor * seconds) / 60, 2) for factor in spread)
    return Range(low, expected, high)
