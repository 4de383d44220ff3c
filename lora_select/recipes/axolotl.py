"""Axolotl: `train.yaml`, and the rows as `segments` of its template-free format `input_output`, which masks each by its label."""

from pathlib import Path
from typing import Any

from lora_select.recipes import expressible
from lora_select.recipes.initial_adapter import named_init
from lora_select.recipes.recipe import START, Order, Tool, Written, hand_over, headline, looks, write_yaml
from lora_select.recipes.rows import Pieces
from lora_select.records import AdapterSpec

NAME = "Axolotl"
KERNELS_OFF = {"lora_mlp_kernel": False, "lora_qkv_kernel": False, "lora_o_kernel": False}
"""It turns its Triton kernels on by itself, and Triton needs a GPU."""


def cannot(spec: AdapterSpec, serve: str | None) -> tuple[str, ...]:
    """Other adapters than LoRA's, other optimizers than AdamW and LoRA+, starts by name but PiSSA and OLoRA."""
    return (
        *expressible.everywhere(spec, serve),
        *expressible.lora_only(spec, NAME),
        *expressible.experts(spec, NAME),
        *expressible.optimizers(spec, NAME, ("lora+",)),
        *expressible.inits(spec, NAME, expressible.PEFT_MAKES),
    )


def write(order: Order, folder: Path) -> Written:
    """Write the folder; paths in it are relative, so it may be moved."""
    hand_over(order, folder, lambda row: {"segments": _segments(row)})
    write_yaml(folder / "train.yaml", arguments(order), headline(order, NAME))
    return Written("axolotl train train.yaml")


def arguments(order: Order) -> dict[str, Any]:
    """What the YAML holds."""
    spec, plan = order.spec, order.plan
    half = plan.precision == "bf16"
    return {
        "base_model": order.model,
        **({"revision_of_model": order.base.revision} if order.base.revision else {}),
        "trust_remote_code": False,
        **_quantized(order.quantize),
        **_adapter(order),
        "datasets": [{"path": "train.jsonl", "ds_type": "json", "type": "input_output"}],
        "test_datasets": [
            {"path": f"{order.looked_at}.jsonl", "ds_type": "json", "type": "input_output", "split": "train"}
        ],
        "train_on_inputs": False,
        "sequence_len": order.max_length,
        "excess_length_strategy": "truncate",
        "sample_packing": False,
        "eval_sample_packing": False,
        "pad_to_sequence_len": False,
        "dataset_prepared_path": "prepared",
        "output_dir": "output",
        "learning_rate": spec.learning_rate,
        "num_epochs": plan.epochs,
        "micro_batch_size": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "lr_scheduler": plan.lr_schedule,
        "warmup_steps": plan.warmup_steps,
        "weight_decay": plan.weight_decay,
        "max_grad_norm": plan.max_grad_norm,
        "optimizer": "adamw_torch",
        "bf16": half,
        "fp16": False,
        "tf32": False,
        "attn_implementation": "sdpa",
        "gradient_checkpointing": plan.gradient_checkpointing,
        "seed": plan.seed,
        **(_looks(order) or {"evals_per_epoch": 1, "saves_per_epoch": 1}),
        "logging_steps": 1,
        **(KERNELS_OFF if plan.device == "cpu" else {}),
    }


def _looks(order: Order) -> dict[str, Any]:
    found = looks(order)
    return found | ({"early_stopping_patience": order.plan.patience} if found and order.plan.patience else {})


def _adapter(order: Order) -> dict[str, Any]:
    spec = order.spec
    init = named_init(spec).peft_arguments.get("init_lora_weights", True)
    more: dict[str, Any] = {}
    if order.start is not None:
        more["lora_model_dir"] = START
    elif init is not True:
        more["peft_init_lora_weights"] = init
    if spec.optimizer.get("name") == "lora+":
        more["loraplus_lr_ratio"] = spec.optimizer["lora_b_ratio"]
    return {
        "adapter": "qlora" if order.quantize == "nf4" else "lora",
        "lora_r": spec.r,
        "lora_alpha": spec.lora_alpha,
        "lora_dropout": 0.0,
        "lora_target_modules": spec.placed,
        "peft_use_rslora": bool(spec.peft_arguments.get("use_rslora", False)),
        "peft_use_dora": bool(spec.peft_arguments.get("use_dora", False)),
        **more,
    }


def _quantized(kind: str | None) -> dict[str, Any]:
    if kind is None:
        return {}
    if kind == "int8":
        return {"load_in_8bit": True}
    return {
        "load_in_4bit": True,
        "bnb_config_kwargs": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": False},
    }


def _segments(row: Pieces) -> list[dict[str, Any]]:
    return [{"label": learnt, "text": text} for learnt, text in row]


TOOL = Tool("axolotl", cannot, write)
