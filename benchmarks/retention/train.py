"""Train the settings' adapters, each once, and leave them as PEFT folders in a work folder."""

import json
import time
from pathlib import Path

from benchmarks.retention.settings import ATTENTION, FEED_FORWARD, Setting, Subject
from lora_select import models
from lora_select.initialization import write_initialization
from lora_select.initialization.portable import make_portable
from lora_select.records import AdapterSpec, Range, TrainingPlan
from lora_select.training import trials
from lora_select.variants import named


def spec_of(setting: Setting) -> AdapterSpec:
    variant = named(setting.variant, setting.r)
    modules = FEED_FORWARD if setting.targets == "mlp-only" else (*ATTENTION, *FEED_FORWARD)
    return variant.spec(
        targets=setting.targets,
        target_modules=modules,
        learning_rate=setting.rate,
        placed={"target_modules": list(modules), "task_type": "CAUSAL_LM"},
    )


def plan_of(setting: Setting) -> TrainingPlan:
    nothing = Range(0, 0, 0)
    return TrainingPlan(
        device="cpu", num_processes=1, zero_stage=0, precision="fp32", micro_batch_size=8,
        gradient_accumulation_steps=setting.batch // 8, effective_batch_size=setting.batch,
        epochs=setting.steps * setting.batch / setting.rows, total_steps=setting.steps,
        warmup_steps=max(1, round(0.1 * setting.steps)), learning_rate=setting.rate, lr_schedule="cosine",
        weight_decay=0.0, max_grad_norm=1.0, checkpoint_every=10**6, keep_checkpoints=1, gradient_checkpointing=False,
        seed=setting.seed, threads_per_process=1, memory_gib=nothing, minutes=nothing, disk_gib=0.0, reasons=(),
        packing=True,
    )  # fmt: skip


def train(setting: Setting, subject: Subject, folder: Path) -> None:
    """Train and save; nothing is done where the folder holds an adapter."""
    if (folder / "training.json").is_file():
        return
    folder.mkdir(parents=True, exist_ok=True)
    spec, plan = spec_of(setting), plan_of(setting)
    factors = folder / "initial_factors.safetensors"
    start = write_initialization(spec, Path(subject.source.path), folder / "none", factors)
    began = time.process_time()
    with trials.adapted(models.load_model(subject.source.path), spec, plan, str(start) if start else None) as network:
        losses = trials.train(network, spec, plan, subject.train, models.pad_id(subject.tokenizer))
        seconds = time.process_time() - began
        network.save_pretrained(str(folder))
        make_portable(folder, str(start) if start else None, spec)
    (folder / "training.json").write_text(json.dumps({"losses": losses, "processor_seconds": round(seconds, 1)}))
    print(f"{setting.name}: {len(losses)} steps, {losses[0]:.3f} -> {losses[-1]:.3f}, {seconds:.0f} s", flush=True)
