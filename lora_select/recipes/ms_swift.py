"""ms-swift: `train.yaml` and `train.sh`, `template.py` that registers a template without any text of its own, and the rows.

ms-swift renders templates from a registry of its own (a tokenizer's template serves its inference only), and takes a local
folder's kind from its name. `template.py` registers both, so that the rendered pieces are what is tokenised; `loss_scale: default`
learns the answers of all turns.
"""

from pathlib import Path
from typing import Any

from lora_select.recipes import expressible
from lora_select.recipes.initial_adapter import named_init
from lora_select.recipes.recipe import (
    START,
    Order,
    Tool,
    Written,
    hand_over,
    headline,
    lora_arguments,
    training_arguments,
    write_yaml,
)
from lora_select.recipes.rows import Pieces
from lora_select.records import AdapterSpec, write_text

NAME = "ms-swift"
TEMPLATE = '''"""A model of any kind under a template that adds nothing to a turn: the rows hold the rendered text."""

from swift.model import Model, ModelGroup, ModelMeta, register_model
from swift.template import TemplateMeta, register_template

register_template(TemplateMeta("rendered_rows", prefix=[], prompt=["{{QUERY}}"], chat_sep=[], suffix=[]))
register_model(ModelMeta("any_causal_lm", [ModelGroup([Model()])], template="rendered_rows"))
'''


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
    hand_over(order, folder, lambda row: {"messages": _messages(row)})
    write_text(folder / "template.py", TEMPLATE)
    write_yaml(folder / "train.yaml", arguments(order), headline(order, NAME))
    write_text(folder / "train.sh", '#!/bin/sh\ncd "$(dirname "$0")" && swift sft train.yaml\n')
    (folder / "train.sh").chmod(0o755)
    return Written("./train.sh")


def arguments(order: Order) -> dict[str, Any]:
    """What the YAML holds; defaults of ms-swift that differ from the measured training (beta2, decay, dropout) are named."""
    plan = order.plan
    dtype = "bfloat16" if plan.precision == "bf16" else "float32"
    return {
        "model": order.model,
        **({"model_revision": order.base.revision} if order.base.revision else {}),
        "model_type": "any_causal_lm",
        "external_plugins": ["template.py"],
        "template": "rendered_rows",
        "use_hf": True,
        "tuner_type": "lora",
        **_adapter(order),
        **_quantized(order.quantize, dtype),
        "torch_dtype": dtype,
        "fp16": False,
        "attn_impl": "sdpa",
        "dataset": ["train.jsonl"],
        "val_dataset": [f"{order.looked_at}.jsonl"],
        "strict": True,
        "loss_scale": "default",
        "max_length": order.max_length,
        "truncation_strategy": "right",
        "adam_beta1": 0.9,
        "adam_beta2": 0.999,
        "adam_epsilon": 1e-8,
        "gradient_checkpointing": plan.gradient_checkpointing,
        "data_seed": plan.seed,
        **training_arguments(order),
        **({"early_stop_interval": plan.patience} if order.rows.validation and plan.patience else {}),
        "report_to": ["none"],
    }


def _adapter(order: Order) -> dict[str, Any]:
    spec = order.spec
    init = named_init(spec).peft_arguments.get("init_lora_weights", True)
    more: dict[str, Any] = {}
    if order.start is not None:
        more["adapters"] = [START]
    elif init is not True:
        more["init_weights"] = init
    if spec.optimizer.get("name") == "lora+":
        more["lorap_lr_ratio"] = spec.optimizer["lora_b_ratio"]
    return {
        **lora_arguments(spec),
        "lora_dtype": "float32",
        **_placed(spec),
        **more,
    }


def _quantized(kind: str | None, dtype: str) -> dict[str, Any]:
    if kind is None:
        return {}
    if kind == "int8":
        return {"quant_method": "bnb", "quant_bits": 8}
    return {
        "quant_method": "bnb",
        "quant_bits": 4,
        "bnb_4bit_quant_type": "nf4",
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_compute_dtype": dtype,
    }


def _messages(row: Pieces) -> list[dict[str, str]]:
    return [{"role": "assistant" if learnt else "user", "content": text} for learnt, text in row]


TOOL = Tool("ms-swift", cannot, write)


def _placed(spec: AdapterSpec) -> dict[str, Any]:
    return {"target_regex" if isinstance(spec.placed, str) else "target_modules": spec.placed}
