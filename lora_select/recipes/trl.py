"""A TRL script that runs as it is: `train.py`, and the rows in pieces, which it tokenises and masks itself.

TRL's own masks need a template with `{% generation %}` marks or one answer a row; the pieces need neither.
"""

import pprint
import string
from pathlib import Path
from typing import Any

from lora_select.recipes import expressible, trl_command
from lora_select.recipes.initial_adapter import named_init
from lora_select.recipes.recipe import START, Order, Tool, Written, hand_over, headline, training_arguments
from lora_select.recipes.rows import Pieces
from lora_select.records import AdapterSpec, write_text
from lora_select.training.worker.optimizer import scheduled

NAME = "TRL"
SCRIPT = string.Template('''"""$headline

    pip install $packages
    python train.py
    accelerate launch --num_processes 4 train.py      # several devices: the rows of a step are shared out
"""

import json
import math
import os

$imports
from transformers import ${stopping}set_seed
from trl import SFTConfig, SFTTrainer

MODEL = $model
REVISION = $revision
MAX_LENGTH = $max_length

ARGUMENTS = $arguments
"""For one process; a step is per_device_train_batch_size x gradient_accumulation_steps rows."""


def shared_out(processes):
    """The arguments of one of several processes, so that a step of all of them keeps its rows."""
    micro, accumulation = (ARGUMENTS[name] for name in ("per_device_train_batch_size", "gradient_accumulation_steps"))
    rows, left = divmod(micro * accumulation, processes)
    if left:
        raise SystemExit(f"a step of {micro * accumulation} rows cannot be shared out over {processes} processes")
    micro = math.gcd(micro, rows)
    return ARGUMENTS | {"per_device_train_batch_size": micro, "gradient_accumulation_steps": rows // micro}


def token_row(pieces, tokenizer):
    """Ids and labels of a row; labels are the learnt pieces, cut at MAX_LENGTH as in the measurement."""
    ids, labels = [], []
    for piece in pieces:
        found = tokenizer(piece["text"], add_special_tokens=False)["input_ids"] if piece["text"] else []
        ids += found
        labels += found if piece["learn"] else [-100] * len(found)
    return {"input_ids": ids[:MAX_LENGTH], "labels": labels[:MAX_LENGTH]}


def rows(file, tokenizer):
    with open(file, encoding="utf-8") as stream:
        return Dataset.from_list([token_row(json.loads(line), tokenizer) for line in stream])


def base_model():
$loader


def adapted_model():
    set_seed(ARGUMENTS["seed"])  # the trainer's own seed comes too late for the adapter's start
$adapter


def main():
    tokenizer = AutoTokenizer.from_pretrained(MODEL, revision=REVISION)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model = adapted_model()
    model.print_trainable_parameters()
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(**shared_out(int(os.environ.get("WORLD_SIZE", "1")))),
        train_dataset=rows("train.jsonl", tokenizer),
        eval_dataset=rows("$looked_at.jsonl", tokenizer),
        processing_class=tokenizer,$optimizer$patience
    )
    trainer.train()
    trainer.save_model("adapter")


if __name__ == "__main__":
    main()
''')
IMPORTS = """import peft
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer"""
LOADER = string.Template("""    return AutoModelForCausalLM.from_pretrained(
        MODEL,
        revision=REVISION,
        dtype=torch.$dtype,$quantization
    )""")
QUANTIZED = {
    "nf4": 'BitsAndBytesConfig(\n            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.{dtype}\n        )',
    "int8": "BitsAndBytesConfig(load_in_8bit=True)",
}
OPTIMIZERS = {
    "lora+": "create_loraplus_optimizer(\n            model, torch.optim.AdamW, lr={rate!r}, loraplus_lr_ratio={lora_b_ratio!r}, "
    "loraplus_weight_decay={decay!r}\n        )",
    "lora-fa": "create_lorafa_optimizer(\n            model, r={r}, lora_alpha={alpha}, lr={rate!r}, weight_decay={decay!r}\n        )",
    "riemannian": "create_riemannian_optimizer(\n            model, torch.optim.AdamW, lr={rate!r}, reg={damping!r}, "
    "weight_decay={decay!r}\n        )",
}


def cannot(spec: AdapterSpec, serve: str | None) -> tuple[str, ...]:
    """Only AdaLoRA, whose ranks a trainer must allocate between steps, and starts that no folder can hold."""
    return (*expressible.everywhere(spec, serve), *expressible.optimizers(spec, NAME, tuple(OPTIMIZERS)))


def write(order: Order, folder: Path) -> Written:
    """Write the folder; paths in it are relative, so it may be moved."""
    hand_over(order, folder, piece_list)
    write_text(folder / "train.py", script(order))
    return Written("python train.py", trl_command.write(order, folder, arguments(order), dtype_of(order)))


def script(order: Order) -> str:
    """The text of `train.py`."""
    dtype = dtype_of(order)
    quantization, imports = "", IMPORTS
    if order.quantize:
        quantization = f"\n        quantization_config=transformers.{QUANTIZED[order.quantize].format(dtype=dtype)},"
        imports = imports.replace("import torch\n", "import torch\nimport transformers\n", 1)
    loader = LOADER.substitute(dtype=dtype, quantization=quantization)
    packages = "trl peft accelerate" + (" bitsandbytes" if order.quantize else "")
    return render(order, NAME, packages, imports, loader, _adapter(order), _optimizer(order))


def render(order: Order, tool: str, packages: str, imports: str, loader: str, adapter: str, optimizer: str) -> str:
    """The script with a way to load the base and to put the adapter on it, both as bodies of functions."""
    patience = order.plan.patience if order.rows.validation else 0
    return SCRIPT.substitute(
        headline=headline(order, tool),
        packages=packages,
        imports=imports,
        model=repr(order.model),
        revision=repr(order.base.revision),
        max_length=order.max_length,
        arguments=pprint.pformat(arguments(order), indent=4, width=100, sort_dicts=False),
        loader=loader,
        adapter=adapter,
        optimizer=optimizer,
        looked_at=order.looked_at,
        stopping="EarlyStoppingCallback, " if patience else "",
        patience=f"\n        callbacks=[EarlyStoppingCallback({patience})]," if patience else "",
    )


def dtype_of(order: Order) -> str:
    """The name of the weights' torch dtype."""
    return "bfloat16" if order.plan.precision == "bf16" else "float32"


def arguments(order: Order) -> dict[str, Any]:
    """What `SFTConfig` is built from."""
    return {
        **training_arguments(order),
        "gradient_checkpointing": order.plan.gradient_checkpointing,
        "max_length": None,
        "data_seed": order.plan.seed,
    }


def _adapter(order: Order) -> str:
    if order.start is not None:
        lines = f'return peft.PeftModel.from_pretrained(base_model(), "{START}", is_trainable=True)'
    else:
        told = scheduled(named_init(order.spec).peft_arguments, order.plan)
        values = pprint.pformat(told, indent=4, width=100, sort_dicts=False)
        lines = f"config = peft.{order.spec.peft_class}(**{values})\nreturn peft.get_peft_model(base_model(), config)"
    return "\n".join(f"    {line}" for line in lines.splitlines())


def _optimizer(order: Order) -> str:
    """LoRA+ and the like: PEFT's own optimizer in place of AdamW, with the Trainer's schedule."""
    name = order.spec.optimizer.get("name")
    if name is None:
        return ""
    values = {
        "rate": order.spec.learning_rate,
        "decay": order.plan.weight_decay,
        "r": order.spec.r,
        "alpha": order.spec.lora_alpha,
    }
    made = OPTIMIZERS[name].format(**values, **{k: v for k, v in order.spec.optimizer.items() if k != "name"})
    return f"\n        optimizers=(peft.optimizers.{made}, None),"


def piece_list(row: Pieces) -> list[dict[str, Any]]:
    """A row as the script reads it."""
    return [{"learn": learnt, "text": text} for learnt, text in row]


TOOL = Tool("trl", cannot, write)
