"""What every contender is told and what it answers; imports nothing but the standard library, so that any environment can.

`task.json`: model, rows (each `input_ids` and `label_mask`, in the order of the steps), batch, steps, warmup_steps, threads,
lora, learning_rate, out. The answer in `out`: seconds by the clock and of processor time of each timed step, and the losses.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path


def read():
    task = json.loads(Path(sys.argv[1]).read_text())
    import torch

    torch.set_num_threads(task["threads"])
    torch.manual_seed(0)
    return task


def labels(row):
    return [token if label else -100 for token, label in zip(row["input_ids"], row["label_mask"], strict=True)]


def dataset(task):
    """The rows as a `datasets.Dataset`, in order."""
    from datasets import Dataset

    return Dataset.from_list([{"input_ids": row["input_ids"], "labels": labels(row)} for row in task["rows"]])


class Clock:
    """Times steps; the Trainer's callbacks call it."""

    def __init__(self, task):
        self.task, self.ends, self.spent, self.losses = task, [], [], []

    def tick(self):
        self.ends.append(time.perf_counter())
        self.spent.append(time.process_time())

    def answer(self):
        """Write what was measured, from the end of the last warm-up step on; each rank in a file of its own."""
        rank = os.environ.get("RANK", "0")
        task, first = self.task, self.task["warmup_steps"]
        timed = {
            name: [b - a for a, b in zip(ends[first - 1 : -1], ends[first:], strict=True)]
            for name, ends in (("seconds", self.ends), ("cpu_seconds", self.spent))
        }
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        Path(task["out"]).with_suffix(f".{rank}.json").write_text(
            json.dumps(timed | {"losses": self.losses, "peak_gib": peak})
        )


def callback(clock):
    from transformers import TrainerCallback

    class Timed(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            clock.tick()

        def on_log(self, args, state, control, logs=None, **kwargs):
            if "loss" in (logs or {}):
                clock.losses.append(logs["loss"])

    return Timed()


def arguments(task):
    """The Trainer's arguments that all peers share."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    return {
        "output_dir": str(Path(task["out"]).with_suffix("")),
        "per_device_train_batch_size": task["batch"] // world,
        "gradient_accumulation_steps": 1,
        "max_steps": task["steps"],
        "learning_rate": task["learning_rate"],
        "lr_scheduler_type": "constant",
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "seed": 0,
    } | ({"ddp_backend": "gloo"} if world > 1 else {})


def lora(task):
    from peft import LoraConfig

    return LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, bias="none", **task["lora"])


def model(task):
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32, attn_implementation="sdpa")
