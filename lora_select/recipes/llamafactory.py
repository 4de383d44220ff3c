"""LLaMA-Factory: `train.yaml`, `dataset_info.json`, and the rows as conversations under its template `empty`.

`empty` puts nothing around a turn, so the rendered pieces are what is tokenised; `train_on_prompt: false` learns the answers of
all turns. Its own ways were tried and are not used: without a template it reads one off the tokenizer's and learns the newline
after each turn, and its `openai` format appends "detailed thinking off" to every system message.
"""

import json
from pathlib import Path
from typing import Any

from lora_select.recipes import expressible
from lora_select.recipes.recipe import (
    START,
    Order,
    Tool,
    Written,
    hand_over,
    headline,
    lora_arguments,
    parts,
    training_arguments,
    write_yaml,
)
from lora_select.recipes.rows import Pieces
from lora_select.records import AdapterSpec, write_text

NAME = "LLaMA-Factory"
TAGS = {"messages": "conversations"}


def cannot(spec: AdapterSpec, serve: str | None) -> tuple[str, ...]:
    """Other adapters than LoRA's, other optimizers than AdamW and LoRA+, starts by name.

    It has PiSSA, but takes the residual in the checkpoint's own precision, which rounds it.
    """
    return (
        *expressible.everywhere(spec, serve),
        *expressible.lora_only(spec, NAME),
        *expressible.experts(spec, NAME),
        *expressible.ends_only(spec, NAME),
        *expressible.optimizers(spec, NAME, ("lora+",)),
        *expressible.inits(spec, NAME, ()),
    )


def write(order: Order, folder: Path) -> Written:
    """Write the folder; paths in it are relative, so it may be moved."""
    hand_over(order, folder, lambda row: {"conversations": _turns(row)})
    info = {
        name: {"file_name": f"{name}.jsonl", "formatting": "sharegpt", "columns": TAGS} for name in parts(order.rows)
    }
    write_text(folder / "dataset_info.json", json.dumps(info, indent=2) + "\n")
    write_yaml(folder / "train.yaml", arguments(order), headline(order, NAME))
    return Written("llamafactory-cli train train.yaml")


def arguments(order: Order) -> dict[str, Any]:
    """What the YAML holds."""
    return {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": order.model,
        **({"model_revision": order.base.revision} if order.base.revision else {}),
        "finetuning_type": "lora",
        **_adapter(order),
        **_quantized(order.quantize),
        "dataset_dir": ".",
        "dataset": "train",
        "eval_dataset": order.looked_at,
        "template": "empty",
        "cutoff_len": order.max_length,
        "train_on_prompt": False,
        "mask_history": False,
        "disable_gradient_checkpointing": not order.plan.gradient_checkpointing,
        "do_eval": True,
        **training_arguments(order),
        **({"early_stopping_steps": order.plan.patience} if order.rows.validation and order.plan.patience else {}),
    }


def _adapter(order: Order) -> dict[str, Any]:
    spec = order.spec
    more: dict[str, Any] = {"adapter_name_or_path": START} if order.start is not None else {}
    if spec.optimizer.get("name") == "lora+":
        more["loraplus_lr_ratio"] = spec.optimizer["lora_b_ratio"]
    return {
        **lora_arguments(spec),
        "lora_target": ",".join(spec.target_modules),
        **more,
    }


def _quantized(kind: str | None) -> dict[str, Any]:
    if kind is None:
        return {}
    if kind == "int8":
        return {"quantization_method": "bnb", "quantization_bit": 8}
    return {
        "quantization_method": "bnb",
        "quantization_bit": 4,
        "quantization_type": "nf4",
        "double_quantization": False,
    }


def _turns(row: Pieces) -> list[dict[str, str]]:
    return [{"from": "gpt" if learnt else "human", "value": text} for learnt, text in row]


TOOL = Tool("llamafactory", cannot, write, cuts_rows=False)
