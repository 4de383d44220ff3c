"""The memory model against what ranks really take: peak resident memory (VmHWM of rank 0) of short real trainings on a CPU.

    python -m benchmarks.plan            all settings, each in ranks of its own; results beside this file

The estimate is made before the run, from the model's sizes and the rows alone. Nothing is fitted to these runs but
`memory.PROCESS_GIB["cpu"]`, which is a rank of a model of half a megabyte.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
from pathlib import Path

from benchmarks.training import MODULES, cpu
from lora_select import models
from lora_select.data.tokens import TokenRow, write_rows
from lora_select.records import AdapterSpec, Range, TrainingPlan
from lora_select.training import fit, launch, memory
from lora_select.training.job import METRICS, TrainingJob

RESULTS = Path(__file__).parent / "results" / "plan.json"
LLAMAS = {"llama-30M": (256, 8, 32_000), "llama-85M": (512, 12, 32_000), "llama-110M": (768, 8, 32_000)}
"""Name: hidden size, layers, vocabulary; MLP 4 d, no grouped queries, tied embedding, random weights."""
SETTINGS = [
    # model, micro-batch, ranks, stage, packing, checkpointing, precision, DoRA
    ("smollm2", 1, 1, 0, True, False, "fp32", False),
    ("smollm2", 4, 1, 0, True, False, "fp32", False),
    ("smollm2", 8, 1, 0, True, False, "fp32", False),
    ("smollm2", 8, 1, 0, False, False, "fp32", False),
    ("smollm2", 8, 1, 0, True, True, "fp32", False),
    ("smollm2", 4, 1, 0, True, False, "bf16", False),
    ("smollm2", 4, 1, 0, True, False, "fp32", True),
    ("smollm2", 2, 2, 1, True, False, "fp32", False),
    ("smollm2", 2, 2, 2, True, False, "fp32", False),
    ("smollm2", 2, 2, 3, True, False, "fp32", False),
    ("llama-30M", 8, 1, 0, True, False, "fp32", False),
    ("llama-30M", 8, 2, 2, False, False, "fp32", False),
    ("llama-85M", 8, 1, 0, True, False, "fp32", False),
    ("llama-85M", 8, 1, 0, True, True, "bf16", False),
    ("llama-110M", 4, 2, 0, True, False, "fp32", False),
    ("llama-110M", 8, 1, 0, True, False, "fp32", True),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings")
    options = parser.parse_args()
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for number, setting in enumerate(SETTINGS):
            if options.only and number not in options.only:
                continue
            try:
                found.append(one(Path(folder) / str(number), *setting))
            except Exception as error:
                found.append({"setting": setting, "failed": str(error)[:300]})
            print(json.dumps(found[-1]), flush=True)
    write(found, whole=not options.only)


def one(folder: Path, name, micro, ranks, stage, packing, checkpointing, precision, dora) -> dict:
    """Estimate, then train two steps."""
    folder.mkdir(parents=True)
    base = models.resolve(source(name, folder.parent))
    shapes = {"r": 16, "lora_alpha": 32, "target_modules": list(MODULES), "lora_dropout": 0.0, "bias": "none"}
    spec = AdapterSpec(
        variant="dora" if dora else "lora", targets="all-linear", target_modules=MODULES, r=16, lora_alpha=32, scale=2.0,
        init="default", learning_rate=1e-4, peft_class="LoraConfig", optimizer={}, num_parameters=adapter_parameters(base, shapes),
        peft_arguments=shapes | {"task_type": "CAUSAL_LM"} | ({"use_dora": True} if dora else {}),
    )  # fmt: skip
    rows = make_rows(2 * micro * ranks, min(base.vocab_size, 30_000))
    plan = TrainingPlan(
        device="cpu", num_processes=ranks, zero_stage=stage, precision=precision, micro_batch_size=micro,
        gradient_accumulation_steps=1, effective_batch_size=micro * ranks, epochs=1.0, total_steps=2, warmup_steps=0,
        learning_rate=1e-4, lr_schedule="constant", weight_decay=0.0, max_grad_norm=1.0, checkpoint_every=1000, keep_checkpoints=1,
        gradient_checkpointing=checkpointing, seed=0, threads_per_process=1, memory_gib=Range(1, 1, 1), minutes=Range(1, 1, 1),
        disk_gib=0.1, reasons=(), packing=packing,
    )  # fmt: skip
    told = fit.setting(plan, rows)
    expected = memory.estimate(base, spec, told)
    write_rows(folder / "rows.parquet", rows)
    launch.train(TrainingJob(spec, plan, base.path, name, *[str(folder / "rows.parquet")] * 2), folder)
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    peak = max(line["memory_gib"] for line in lines)
    return {
        "model": name, "micro_batch": micro, "ranks": ranks, "zero_stage": stage, "packing": packing,
        "checkpointing": checkpointing, "precision": precision, "dora": dora, "tokens": told.tokens,
        "low": expected.low, "expected": expected.expected, "high": expected.high, "measured": round(peak, 3),
        "error": round(expected.expected / peak - 1, 3),
        "parts": {part: round(value, 3) for part, value in memory.parts(base, spec, told).items()},
    }  # fmt: skip


def source(name: str, folder: Path) -> str:
    """The sample model, or a random Llama that is made the first time."""
    if name == "smollm2":
        return "sample:smollm2-135m-instruct"
    place = folder / name
    if not place.exists():
        import torch
        from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

        width, layers, vocabulary = LLAMAS[name]
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocabulary, hidden_size=width, intermediate_size=4 * width, num_hidden_layers=layers,
            num_attention_heads=width // 64, num_key_value_heads=width // 64, max_position_embeddings=2048, tie_word_embeddings=True,
        )  # fmt: skip
        LlamaForCausalLM(config).save_pretrained(place)
        AutoTokenizer.from_pretrained(models.resolve("sample:smollm2-135m-instruct").path).save_pretrained(place)
    return str(place)


def adapter_parameters(base, shapes) -> int:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(base.path))
        made = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **shapes))
    return sum(p.numel() for p in made.parameters() if p.requires_grad)


def make_rows(count: int, vocabulary: int) -> list[TokenRow]:
    """Random ids, 80 to 220 tokens, the last 30 to 60 of them labels."""
    drawn = random.Random(0)
    rows = []
    for number in range(count):
        length, answer = drawn.randint(80, 220), drawn.randint(30, 60)
        ids = tuple(drawn.randrange(vocabulary) for _ in range(length))
        rows.append(TokenRow(f"{number:03}", ids, (False,) * (length - answer) + (True,) * answer))
    return rows


def write(found: list[dict], *, whole: bool) -> None:
    import deepspeed
    import peft
    import torch
    import transformers

    errors = [abs(one["error"]) for one in found if "error" in one]
    inside = [one["low"] <= one["measured"] <= one["high"] for one in found if "error" in one]
    summary = {
        "settings": found,
        "median_absolute_error": round(statistics.median(errors), 3),
        "largest_absolute_error": max(errors),
        "inside_low_to_high": f"{sum(inside)} of {len(inside)}",
        "quantity": "VmHWM of rank 0, GiB",
        "machine": f"{cpu()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {one.__name__: one.__version__ for one in (torch, transformers, peft, deepspeed)},
    }
    print(json.dumps({name: value for name, value in summary.items() if name != "settings"}))
    if whole:
        RESULTS.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
