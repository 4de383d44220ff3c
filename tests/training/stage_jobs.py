"""Jobs that are done together by :mod:`many_runs`."""

import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_jobs import MODULES, job, spec

from lora_select import models
from lora_select.training.job import CHECKPOINTS, write_job

STEPS, EVERY = 6, 3
ALONE = {"num_processes": 1, "gradient_accumulation_steps": 2}
"""One rank with the micro-batches of two: the same slots, so the same dropout."""


def staged(folders: dict, root: Path, model: Path, saved: int, finished: int, stage: int) -> Path:
    """A job of six steps, LoRA on odd shapes (r 3) with dropout and DoRA, so that parts are uneven and random numbers count.

    Where the ranks differ it goes on from the third step of the run of `saved` ranks, which is done before.
    """
    folder = folders[saved, finished, stage] = root / f"{saved}-{finished}-{stage}"
    arguments = spec().peft_arguments | {"r": 3, "lora_dropout": 0.2, "use_dora": True}
    adapter = spec(r=3, peft_arguments=arguments)
    changes = {"zero_stage": stage, "total_steps": STEPS, "checkpoint_every": EVERY, **(ALONE if finished == 1 else {})}
    made = job(folder, model, adapter=adapter, **changes)
    if saved != finished:
        shutil.copytree(folders[saved, saved, stage] / CHECKPOINTS, folder / CHECKPOINTS)
    return write_job(folder, made)


def principal_factors(model: Path, file: Path) -> Path:
    """PiSSA-like factors, half of each weight's leading part, and the note that they are taken out of the base."""
    factors = {}
    for name, layer in models.load_model(str(model)).named_modules():
        if name.endswith(MODULES):
            u, s, v = torch.linalg.svd(layer.weight, full_matrices=False)
            factors[f"{name}.lora_A"] = (s[:4].sqrt()[:, None] * v[:4]).contiguous() / 2**0.5
            factors[f"{name}.lora_B"] = (u[:, :4] * s[:4].sqrt()).contiguous() / 2**0.5
    save_file(factors, file, metadata={"subtract_from_base": "true"})
    return file
