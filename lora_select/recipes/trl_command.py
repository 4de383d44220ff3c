"""TRL by its own command, `trl sft --config sft.yaml`, and the file that `accelerate launch` takes for several devices.

`trl sft` has no way to be told what of a row is learnt, so it is handed `tokens/`: the ids and labels that were measured.
"""

import re
import shutil
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.recipes import expressible
from lora_select.recipes.recipe import Order, headline, write_yaml
from lora_select.recipes.rows import Pieces, tokens, write_lines
from lora_select.records import AdapterSpec

CONFIG, TOKENS, LAUNCH = "sft.yaml", "tokens", "accelerate.yaml"
NAME = "`trl sft`"
DEVICES = """For `accelerate launch --config_file accelerate.yaml train.py`: num_processes is the number of your GPUs.
train.py shares a step's rows out over them."""


def cannot(spec: AdapterSpec) -> tuple[str, ...]:
    """What the command cannot be told, though the script can: other adapters, starts and optimizers than LoRA's own."""
    start = expressible.start_of(spec)
    return (
        *expressible.lora_only(spec, NAME),
        *expressible.experts(spec, NAME),
        *expressible.optimizers(spec, NAME, ()),
        *((f"{NAME} has LoRA's default start alone, not {spec.variant}'s",) if start != expressible.FRESH else ()),
    )


def write(order: Order, folder: Path, arguments: dict[str, Any], dtype: str) -> tuple[str, ...]:
    """Write the files, or take away those of another choice.

    Args:
        order: what is trained.
        folder: where.
        arguments: of `SFTConfig`.
        dtype: name of the weights' torch dtype.

    Returns:
        What a person should know: one sentence a command.
    """
    (folder / CONFIG).unlink(missing_ok=True)
    shutil.rmtree(folder / TOKENS, ignore_errors=True)
    write_yaml(folder / LAUNCH, launch(order), DEVICES)
    several = f"several devices: accelerate launch --config_file {LAUNCH} train.py"
    if faults := cannot(order.spec):
        return several, f"no {CONFIG}: {faults[0].partition(';')[0]}; train.py has it"
    (folder / TOKENS).mkdir()
    tokenizer = models.load_tokenizer(order.base.path)
    for name, rows in (("train", order.rows.train), ("test", order.rows.validation or order.rows.eval)):
        write_lines(folder / TOKENS / f"{name}.jsonl", [token_row(row, tokenizer, order.max_length) for row in rows])
    write_yaml(folder / CONFIG, config(order, arguments, dtype), headline(order, NAME))
    told = (several, f"by TRL's own command: trl sft --config {CONFIG}")
    endless = order.plan.patience and order.rows.validation
    return (*told, "trl sft has no patience: it trains to the last step, train.py stops earlier") if endless else told


def config(order: Order, arguments: dict[str, Any], dtype: str) -> dict[str, Any]:
    """What `sft.yaml` holds."""
    return {
        "model_name_or_path": order.model,
        **({"model_revision": order.base.revision} if order.base.revision else {}),
        "dtype": dtype,
        **_quantized(order.quantize),
        **_adapter(order.spec),
        "dataset_name": TOKENS,
        **arguments,
    }


def launch(order: Order) -> dict[str, Any]:
    """What `accelerate.yaml` holds."""
    return {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": "MULTI_GPU",
        "num_machines": 1,
        "num_processes": 2,
        "machine_rank": 0,
        "gpu_ids": "all",
        "mixed_precision": "bf16" if order.plan.precision == "bf16" else "no",
        "rdzv_backend": "static",
        "use_cpu": False,
    }


def token_row(row: Pieces, tokenizer: Any, max_length: int) -> dict[str, list[int]]:
    """Ids and labels, -100 where nothing is learnt, cut as in the measurement."""
    ids, mask = tokens(row, tokenizer)
    labels = [token if learnt else -100 for token, learnt in zip(ids, mask, strict=True)]
    return {"input_ids": list(ids[:max_length]), "labels": labels[:max_length]}


def _adapter(spec: AdapterSpec) -> dict[str, Any]:
    placed = spec.placed
    if isinstance(placed, str):
        placed = [placed]
    elif len(placed) == 1:
        placed = [rf"(.*\.)?{re.escape(placed[0])}"]  # TRL hands a single name to PEFT as a pattern of the whole name
    return {
        "use_peft": True,
        "lora_r": spec.r,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": 0.0,
        "lora_target_modules": placed,
        "use_rslora": bool(spec.peft_arguments.get("use_rslora", False)),
        "use_dora": bool(spec.peft_arguments.get("use_dora", False)),
    }


def _quantized(kind: str | None) -> dict[str, Any]:
    if kind is None:
        return {}
    if kind == "int8":
        return {"load_in_8bit": True}
    return {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "use_bnb_nested_quant": False}
