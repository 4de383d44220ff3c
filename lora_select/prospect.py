"""What a training would take, where it will run: its plan, time and memory, and what does not fit."""

import dataclasses
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select import recipes
from lora_select.data.tokens import read_rows
from lora_select.errors import InputError
from lora_select.recipes import expressible
from lora_select.records import AdapterSpec, BaseModel, DatasetProfile, TrainingPlan
from lora_select.training.machine import Machine, detect_machine

TRAINING: Mapping[str, Any] = {
    "num_processes": 1,
    "zero_stage": 0,
    "precision": "auto",
    "micro_batch_size": None,
    "packing": False,
    "gradient_checkpointing": "auto",
    "max_steps": None,
    "warmup_fraction": 0.1,
    "lr_schedule": "cosine",
    "weight_decay": 0.0,
    "max_grad_norm": 1.0,
    "checkpoint_every": 20,
    "keep_checkpoints": 2,
    "whole_logits": True,
}
"""What of a run's `training` section a recommendation fixes: one process, rows padded, all logits formed, as other trainers do."""


SPEED = "speed"
"""Where the measurement of speed works."""


@final
@dataclass(frozen=True)
class Wish:
    """What the user wants of the answer: constraints on the choice, how it will be trained, and for which tools.

    `memory_gib` is that of one device (None: this machine's); `device` where training will run, `auto` being this machine;
    `race` what probe trainings may cost, as a share of the training, at least 0;
    `prefer_retention` as in :class:`lora_select.records.SelectionInputs`.
    """

    serve: str | None
    quantize: str | None
    must_merge: bool
    variant: str | None
    targets: str | None
    r: int | None
    learning_rate: float | None
    memory_gib: float | None
    device: str
    batch: int
    epochs: float
    tools: tuple[str, ...]
    race: float
    prefer_retention: bool


def machine_of(wish: Wish) -> Machine:
    """Where the adapter will be trained, with the memory that may be used there."""
    if wish.device == "cuda" and not _has_gpu():
        if wish.memory_gib is None:
            raise InputError(
                "--device cuda, and this machine has no GPU to ask: name its memory, such as --memory 24GiB"
            )
        return Machine("cuda", 1, 1, wish.memory_gib, True)
    found = detect_machine(wish.device)
    return dataclasses.replace(found, memory_gib=wish.memory_gib or found.memory_gib)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def here(machine: Machine) -> str:
    """The device of this machine on which things are measured."""
    return machine.device if _is_here(machine) else "cpu"


def _is_here(machine: Machine) -> bool:
    return machine.device == "cpu" or _has_gpu()


def training_of(wish: Wish, seed: int) -> dict[str, Any]:
    """The wish as a run's `training` section."""
    told = {"effective_batch_size": wish.batch, "epochs": wish.epochs, "seed": seed, "quantize": wish.quantize}
    return {**TRAINING, **told}


def refuse_early(wish: Wish, base: BaseModel, profile: DatasetProfile, machine: Machine) -> None:
    """Before the pass: rows that a tool cuts otherwise, and a base that does not fit with the smallest adapter.

    Raises:
        InputError: either is so.
    """
    longest = max(profile.train.length.maximum, profile.eval.length.maximum)
    recipes.refuse_rows(longest, profile.max_length, wish.tools)
    smallest = AdapterSpec("lora", "", (), 1, 1, 1.0, "default", 1e-4, "LoraConfig", {}, {}, 1)
    _fitting(wish, 0, base, profile, smallest, machine, None)


def planned(
    wish: Wish,
    seed: int,
    base: BaseModel,
    profile: DatasetProfile,
    spec: AdapterSpec,
    machine: Machine,
    out: Path,
) -> tuple[TrainingPlan, bool]:
    """The plan, its speed measured where the machine is this one; its memory that of a trainer that forms all logits."""
    from lora_select.training.planning import fit, memory

    tokens = (out / profile.train_tokens_file.path).resolve()
    plan = _fitting(wish, seed, base, profile, spec, machine, tokens if _is_here(machine) else None)
    held = dataclasses.replace(fit.setting(plan, read_rows(tokens), wish.quantize), whole_logits=True)
    plan = dataclasses.replace(plan, memory_gib=memory.estimate(base, spec, held))
    shutil.rmtree(out / SPEED, ignore_errors=True)
    return plan, any(reason.startswith("measured here") for reason in plan.reasons)


def _fitting(
    wish: Wish,
    seed: int,
    base: BaseModel,
    profile: DatasetProfile,
    spec: AdapterSpec,
    machine: Machine,
    tokens: Path | None,
) -> TrainingPlan:
    from lora_select.training.planning import plan as trial
    from lora_select.training.planning.plan import make_plan

    training = training_of(wish, seed) | {
        "precision": "fp32"
        if spec.init in expressible.PEFT_MAKES
        else "auto",  # in bf16 the base less B0 A0 would be rounded
    }
    try:
        if tokens is None:
            return make_plan(profile, spec, base, machine, training)
        return trial.planned(profile, spec, base, machine, training, tokens, tokens.parent / SPEED)
    except InputError as error:
        raise InputError(
            f"{error}. Here: a smaller --max-length or --batch, --base nf4, or a larger --memory than {machine.memory_gib:.1f}GiB"
        ) from error
