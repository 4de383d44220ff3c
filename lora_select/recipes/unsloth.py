"""Unsloth: TRL's script with Unsloth's loader and adapter. Written by the signatures of its code, never run: it needs a GPU."""

import pprint
from pathlib import Path
from typing import Any

from lora_select.recipes import expressible, trl
from lora_select.recipes.recipe import Order, Tool, Written, hand_over
from lora_select.records import AdapterSpec, write_text

NAME = "Unsloth"
IMPORTS = """from unsloth import FastLanguageModel  # first: it patches what is imported after it
import torch
from datasets import Dataset
from transformers import AutoTokenizer"""
NEVER_RUN = "by its code, never run: Unsloth needs a GPU"


def cannot(spec: AdapterSpec, serve: str | None) -> tuple[str, ...]:
    """Other adapters than LoRA and rsLoRA from PEFT's own start, other optimizers than AdamW: its patches know no others."""
    found = [
        *expressible.everywhere(spec, serve),
        *expressible.lora_only(spec, NAME),
        *expressible.experts(spec, NAME),
        *expressible.ends_only(spec, NAME),
        *expressible.optimizers(spec, NAME, ()),
    ]
    if spec.peft_class == "LoraConfig" and spec.peft_arguments.get("use_dora"):
        found.append(f"{NAME} has no {spec.variant} of these settings; take trl or peft, or `selection.variant=lora`")
    if expressible.start_of(spec) != expressible.FRESH:
        found.append(
            f"{NAME} makes its own start, not that of {spec.variant}; take trl or peft, or `selection.variant=lora`"
        )
    return tuple(found)


def write(order: Order, folder: Path) -> Written:
    """Write the folder; paths in it are relative, so it may be moved."""
    hand_over(order, folder, trl.piece_list)
    write_text(folder / "train.py", script(order))
    notes = [NEVER_RUN]
    if order.quantize == "nf4":
        notes.append("its nf4 quantises the scales too, which the measurement did not")
    return Written("python train.py", tuple(notes))


def script(order: Order) -> str:
    """The text of `train.py`."""
    loader = f"    return FastLanguageModel.from_pretrained(**{_indented(loading(order))})[0]"
    adapter = f"    return FastLanguageModel.get_peft_model(base_model(), **{_indented(adapting(order))})"
    loader = loader.replace("'DTYPE'", f"torch.{trl.dtype_of(order)}")
    return trl.render(order, f"{NAME} ({NEVER_RUN})", "unsloth", IMPORTS, loader, adapter, "")


def loading(order: Order) -> dict[str, Any]:
    """What `FastLanguageModel.from_pretrained` is given."""
    return {
        "model_name": order.model,
        "revision": order.base.revision,
        "max_seq_length": order.max_length,
        "dtype": "DTYPE",
        "load_in_4bit": order.quantize == "nf4",
        "load_in_8bit": order.quantize == "int8",
        "use_exact_model_name": True,
        "trust_remote_code": False,
    }


def adapting(order: Order) -> dict[str, Any]:
    """What `FastLanguageModel.get_peft_model` is given beside the model."""
    spec, plan = order.spec, order.plan
    return {
        "r": spec.r,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(spec.target_modules),
        "use_rslora": bool(spec.peft_arguments.get("use_rslora", False)),
        "init_lora_weights": True,
        "use_gradient_checkpointing": "unsloth" if plan.gradient_checkpointing else False,
        "random_state": plan.seed,
    }


def _indented(values: dict[str, Any]) -> str:
    return pprint.pformat(values, indent=4, width=100, sort_dicts=False).replace("\n", "\n    ")


TOOL = Tool("unsloth", cannot, write)
