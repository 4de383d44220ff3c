"""PEFT: the adapter at its start, a folder of its own. PEFT holds no rows and no training, so these lie beside it."""

import json
from pathlib import Path
from typing import Any

from lora_select.recipes import expressible
from lora_select.recipes.recipe import START, Order, Tool, Written, hand_over
from lora_select.records import AdapterSpec, write_text

LOAD = f"PeftModel.from_pretrained(base, {START!r}, is_trainable=True)"


def cannot(spec: AdapterSpec, serve: str | None) -> tuple[str, ...]:
    """Only starts that no folder can hold."""
    return expressible.everywhere(spec, serve)


def write(order: Order, folder: Path) -> Written:
    """The start, `training.json`, and the rows in pieces."""
    hand_over(order, folder, lambda row: [{"learn": learn, "text": text} for learn, text in row])
    write_text(folder / "training.json", json.dumps(settings(order), indent=2) + "\n")
    notes = ["training.json holds what a PEFT folder cannot: learning rate, schedule, batch, precision, length"]
    if order.spec.optimizer:
        notes.append(f"the optimizer is {order.spec.optimizer['name']}, not AdamW: {dict(order.spec.optimizer)}")
    return Written(LOAD, tuple(notes))


def settings(order: Order) -> dict[str, Any]:
    """The training in plain words."""
    plan = order.plan
    return {
        "base_model": order.model,
        "base_model_revision": order.base.revision,
        "quantized_base": order.quantize,
        "optimizer": dict(order.spec.optimizer) or {"name": "adamw", "betas": [0.9, 0.999], "eps": 1e-8},
        "learning_rate": plan.learning_rate,
        "lr_schedule": plan.lr_schedule,
        "warmup_steps": plan.warmup_steps,
        "total_steps": plan.total_steps,
        "epochs": plan.epochs,
        "rows_a_step": plan.effective_batch_size,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "precision": plan.precision,
        "max_length": order.max_length,
        "validation_rows": len(order.rows.validation),
        "validation_every": plan.validation_every,
        "patience": plan.patience,
        "seed": plan.seed,
        "loss": "mean over the tokens of the pieces with `learn: true` in a step; no special tokens are added to a piece",
    }


TOOL = Tool("peft", cannot, write)
