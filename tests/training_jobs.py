"""Small real training jobs on the tiny model, shared by the tests of training."""

from pathlib import Path

from lora_select.data.labels.tokens import TokenRow, write_rows
from lora_select.records import AdapterSpec, Range, TrainingPlan
from lora_select.training.job import TrainingJob

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def spec(**changes) -> AdapterSpec:
    arguments = {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": list(MODULES),
        "lora_dropout": 0.0,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    values = {
        "variant": "lora",
        "targets": "all-linear",
        "target_modules": MODULES,
        "r": 4,
        "lora_alpha": 8,
        "scale": 2.0,
        "init": "default",
        "learning_rate": 1e-2,
        "peft_class": "LoraConfig",
        "peft_arguments": arguments,
        "optimizer": {},
        "num_parameters": 11264,
    }
    return AdapterSpec(**(values | changes))


def plan(**changes) -> TrainingPlan:
    values = {
        "device": "cpu",
        "num_processes": 2,
        "zero_stage": 0,
        "precision": "fp32",
        "micro_batch_size": 4,
        "gradient_accumulation_steps": 1,
        "effective_batch_size": 8,
        "epochs": 1.0,
        "total_steps": 60,
        "warmup_steps": 4,
        "learning_rate": 3e-3,
        "lr_schedule": "cosine",
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "checkpoint_every": 5,
        "keep_checkpoints": 2,
        "gradient_checkpointing": False,
        "seed": 0,
        "threads_per_process": 1,
        "memory_gib": Range(1, 1, 1),
        "minutes": Range(1, 1, 1),
        "disk_gib": 0.1,
        "reasons": (),
    }
    return TrainingPlan(**(values | changes))


def rows(count: int) -> list[TokenRow]:
    """Ragged rows: a prompt of 3 to 14 tokens, an answer of 2 to 5 that repeats a token of the prompt."""
    made = []
    for number in range(count):
        prompt = [4 + (number * 7 + place) % 250 for place in range(3 + number % 12)]
        answer = [prompt[0]] * (2 + number % 4)
        mask = [False] * len(prompt) + [True] * len(answer)
        made.append(TokenRow(f"row-{number:03}", tuple(prompt + answer), tuple(mask)))
    return made


def job(
    folder: Path,
    model: Path,
    *,
    count: int = 477,
    initial_factors: Path | None = None,
    adapter: AdapterSpec | None = None,
    patience: float = 600,
    **changes,
) -> TrainingJob:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(folder / "train.parquet", rows(count))
    write_rows(folder / "probe.parquet", rows(6))
    made = plan(**changes)
    return TrainingJob(
        spec=adapter or spec(learning_rate=made.learning_rate),
        plan=made,
        base_path=str(model),
        base_source="tiny",
        train_tokens=str(folder / "train.parquet"),
        check_tokens=str(folder / "probe.parquet"),
        initial_factors=str(initial_factors) if initial_factors else None,
        patience_seconds=patience,
    )
