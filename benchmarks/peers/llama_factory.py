"""LLaMA-Factory's `run_exp` on rows that are tokenised already. Gradient checkpointing, which it turns on, is off as in the others."""

import importlib.machinery
import importlib.util
import os
import sys
import time
import types
from pathlib import Path

import task as told


def stand_in_for_torchaudio():
    """LLaMA-Factory imports it at start and needs it for sound only."""
    module = types.ModuleType("torchaudio")
    module.__spec__ = importlib.machinery.ModuleSpec("torchaudio", None)
    sys.modules["torchaudio"] = module


def main():
    task = told.read()
    if importlib.util.find_spec("torchaudio") is None:
        stand_in_for_torchaudio()
    from datasets import DatasetDict
    from llamafactory.train.tuner import run_exp

    rows = told.dataset(task).map(lambda row: {"attention_mask": [1] * len(row["input_ids"])})
    folder = Path(task["out"]).with_suffix(".rows")
    if os.environ.get("RANK", "0") == "0":
        DatasetDict({"train": rows}).save_to_disk(folder.with_suffix(".writing"))
        folder.with_suffix(".writing").rename(folder)
    while not folder.exists():  # another rank writes it
        time.sleep(0.1)
    clock = told.Clock(task)
    options = {name: value for name, value in told.arguments(task).items() if name != "ddp_backend"} | {
        "stage": "sft",
        "do_train": True,
        "model_name_or_path": task["model"],
        "finetuning_type": "lora",
        "lora_rank": task["lora"]["r"],
        "lora_alpha": task["lora"]["lora_alpha"],
        "lora_target": ",".join(task["lora"]["target_modules"]),
        "lora_dropout": 0.0,
        "template": "chatml",
        "dataset": "tokenised",  # must be named and is not read: the folder below holds the rows
        "tokenized_path": str(folder),
        "flash_attn": "sdpa",
        "disable_gradient_checkpointing": True,
        "disable_shuffling": True,
        "overwrite_output_dir": True,
        "dataloader_num_workers": 0,
    }
    run_exp(options, callbacks=[told.callback(clock)])
    clock.answer()


if __name__ == "__main__":
    main()
