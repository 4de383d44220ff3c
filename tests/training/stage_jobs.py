"""Jobs that are done together by :mod:`many_runs`."""

import dataclasses
import random
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from training_jobs import MODULES, job, spec

from lora_select import models
from lora_select.data.labels.tokens import TokenRow, write_rows
from lora_select.training.job import CHECKPOINTS, write_job
from lora_select.training.validation import split

STEPS, EVERY = 6, 3
ALONE = {"num_processes": 1, "gradient_accumulation_steps": 2}
"""One rank with the micro-batches of two: the same slots, so the same dropout."""

WATCHED = {
    "epochs": 20.0,
    "total_steps": 60,
    "effective_batch_size": 8,
    "learning_rate": 1e-2,
    "validation_rows": 8,
    "validation_every": 4,
    "checkpoint_every": 5,
    "keep_checkpoints": 20,
}


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


def at_odds(count: int) -> list[TokenRow]:
    """Rows whose kept ones have another answer than those that are trained on: what is learnt makes them worse."""
    draw = random.Random(0)
    prompts = [tuple(draw.randrange(20, 254) for _ in range(10)) for _ in range(count)]
    mask = (False,) * 10 + (True,) * 4
    bare = [TokenRow(f"row-{n:03}", (*prompt, *(9,) * 4), mask) for n, prompt in enumerate(prompts)]
    kept = {row.row_id for row in split(bare, WATCHED["validation_rows"], 0)[1]}
    return [TokenRow(row.row_id, (*row.input_ids[:10], *(7,) * 4), mask) if row.row_id in kept else row for row in bare]


def watched(folder: Path, model: Path, **changes) -> Path:
    """A job whose kept rows are looked at, and that three worse looks end."""
    made = job(folder, model, count=8, **(WATCHED | changes))
    made = dataclasses.replace(made, plan=dataclasses.replace(made.plan, patience=3))
    write_rows(folder / "train.parquet", at_odds(32))
    return write_job(folder, made)
