"""The plan against what ranks really take on a CPU: memory and time of short real trainings.

    python -m benchmarks.plan                 all settings, each in ranks of its own; results beside this file
    python -m benchmarks.plan --only 0 1 2    some of them; the others' results stay

Each setting is planned as a user's is: first from the model's sizes and the rows alone (the memory model), then with what a few
real micro-batches took (what the plan stage shows). Then three steps are trained. Memory is the peak resident memory of rank 0;
time is that of the steps, one thread a rank, and, apart, of what comes before and after them. Where other work shares the machine the
clock tells how that work came and went between trial and steps; so the same estimate is also made of processor seconds of rank 0
(those of the trial) and laid beside those of the steps. Fitted to such runs are `memory.PROCESS_GIB["cpu"]`, which is a rank of a
model of half a megabyte, `memory.HEAP` (settings 0 to 3) and `memory.HOLES` (setting 8).

    python -m benchmarks.plan --again         no training: the memory model as it is now beside the peaks that were measured
"""

import argparse
import contextlib
import dataclasses
import json
import os
import random
import statistics
import tempfile
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.training import MODULES, cpu
from lora_select import models
from lora_select.data.labels.tokens import TokenRow, write_rows
from lora_select.records import AdapterSpec, BaseModel, DatasetProfile, FileRef, Quantiles, SplitProfile
from lora_select.training import heartbeat
from lora_select.training.job import TrainingJob
from lora_select.training.planning import measure
from lora_select.training.planning import plan as plans
from lora_select.training.supervisor import launch, metrics_file

RESULTS = Path(__file__).parent / "results" / "plan.json"
LLAMAS = {"llama-30M": (256, 8, 32_000), "llama-85M": (512, 12, 32_000), "llama-110M": (768, 8, 32_000)}
"""Name: hidden size, layers, vocabulary; MLP 4 d, no grouped queries, tied embedding, random weights."""
STEPS = 3


@dataclass(frozen=True)
class Case:
    """One setting. `micro` rows a micro-batch and one micro-batch a step."""

    model: str
    micro: int
    ranks: int = 1
    stage: int = 0
    packing: bool = True
    checkpointing: bool = False
    precision: str = "fp32"
    dora: bool = False
    quantize: str | None = None


# No bf16: a CPU without its instructions takes 36 to 140 times as long for the backward matrix products as in fp32.
CASES = [
    Case("smollm2", 1),
    Case("smollm2", 4),
    Case("smollm2", 4, packing=False),
    Case("smollm2", 4, checkpointing=True),
    Case("smollm2", 4, quantize="nf4"),
    Case("smollm2", 2, dora=True),
    Case("smollm2", 2, ranks=2, stage=1),
    Case("smollm2", 2, ranks=2, stage=2),
    Case("smollm2", 2, ranks=2, stage=3),
    Case("llama-30M", 8),
    Case("llama-30M", 8, ranks=2, stage=2, packing=False),
    Case("llama-85M", 8),
    Case("llama-110M", 4, ranks=2),
    Case("llama-110M", 4, dora=True),
    Case("llama-110M", 4, ranks=2, stage=3),
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=int, nargs="*", help="numbers of settings")
    parser.add_argument("--again", action="store_true", help="compute anew beside the peaks that were measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for number, case in enumerate(CASES):
            if options.only is not None and number not in options.only:
                continue
            place = Path(folder) / str(number)
            place.mkdir()
            found = again(place, case, number) if options.again else one(place, case)
            print(json.dumps(found), flush=True)
            if found:
                write(number, found)


class Setting:
    """Model, rows and adapter of a case, and how it is planned."""

    def __init__(self, folder: Path, case: Case) -> None:
        self.case = case
        self.base = models.resolve(source(case.model, folder.parent))
        self.rows = make_rows(STEPS * case.micro * case.ranks, min(self.base.vocab_size, 30_000))
        self.spec = adapter(self.base, case)

    def planned(self, measured: measure.Measured | str | None = None):
        machine = dataclasses.replace(plans.detect_machine("cpu"), cores=self.case.ranks)  # one thread a rank
        profile = profiled(self.rows)
        return plans.make_plan(profile, self.spec, self.base, machine, wanted(self.case), self.rows, measured)


def one(folder: Path, case: Case) -> dict:
    """Plan, try, plan again, train."""
    its = Setting(folder, case)
    write_rows(folder / "rows.parquet", its.rows)
    file = str(folder / "rows.parquet")
    computed = its.planned()
    told = TrainingJob(its.spec, computed, its.base.path, case.model, file, file, quantized_base=case.quantize)
    measured = measure.measure(told, folder / "measure")
    if isinstance(measured, str):
        raise SystemExit(measured)
    plan = its.planned(measured)
    began, load = time.monotonic(), os.getloadavg()[0]
    with watched(folder) as spent:
        result = launch.train(dataclasses.replace(told, plan=plan), folder)
    wall, processor = time.monotonic() - began, spent[-1] - spent[0]
    tokens = sum(len(row.input_ids) for row in its.rows)
    foreseen = tokens * measured.processor_seconds / (measured.tokens * case.ranks)
    start = plans.RANK_START_SECONDS
    return {
        "setting": dataclasses.asdict(case),
        "heaviest_tokens": measured.heaviest_tokens,
        "trial": dataclasses.asdict(measured),
        **memory_of(computed, plan, round(result.peak_memory_gib, 3)),
        "seconds_of_steps": round(result.seconds, 1),
        "planned_seconds_of_steps": {
            name: round(60 * value - start, 1) for name, value in dataclasses.asdict(plan.minutes).items()
        },
        "time_error": round((60 * plan.minutes.expected - start) / result.seconds - 1, 3),
        "processor_seconds_of_steps": round(processor, 2),
        "planned_processor_seconds_of_steps": {
            name: round(factor * foreseen, 2)
            for name, factor in zip(("low", "expected", "high"), plans.MEASURED_SPREAD, strict=True)
        },
        "processor_time_error": round(foreseen / processor - 1, 3),
        "seconds_beside_the_steps": round(wall - result.seconds, 1),
        "load_of_the_machine": round(load, 1),
    }


def memory_of(computed, plan, peak: float) -> dict:
    """Peak, and what was said of it before and after the trial."""
    return {
        "peak_gib": peak,
        "computed_gib": dataclasses.asdict(computed.memory_gib),
        "computed_error": round(computed.memory_gib.expected / peak - 1, 3),
        "planned_gib": dataclasses.asdict(plan.memory_gib),
        "planned_error": round(plan.memory_gib.expected / peak - 1, 3),
    }


def again(folder: Path, case: Case, number: int) -> dict:
    """What is measured of the setting, with what the memory model says now; nothing where it was not measured."""
    before = json.loads(RESULTS.read_text())["settings"].get(str(number))
    if not before:
        return {}
    its = Setting(folder, case)
    trial = measure.Measured(**before["trial"]) if "trial" in before else None
    found = memory_of(its.planned(), its.planned(trial), before["peak_gib"])
    return before | (found if trial else {name: found[name] for name in ("computed_gib", "computed_error")})


@contextlib.contextmanager
def watched(folder: Path):
    """Processor seconds of rank 0: when its first step began and whenever it had written one; looked at from outside."""
    ends: list[float] = []
    done = threading.Event()

    def look() -> None:
        while not done.wait(0.02) and len(ends) <= STEPS:
            written = len(metrics_file.read_metrics(folder))
            with contextlib.suppress(psutil.Error, IndexError):
                rank = heartbeat.read(folder)[0]
                if rank["phase"] == "step" or written:
                    spent = psutil.Process(rank["pid"]).cpu_times()
                    ends.extend([spent.user + spent.system] * (written + 1 - len(ends)))

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield ends
    finally:
        done.set()
        watcher.join()
    if len(ends) != STEPS + 1:
        raise SystemExit(f"rank 0 was seen {len(ends)} times and not {STEPS + 1}")


def adapter(base: BaseModel, case: Case) -> AdapterSpec:
    shapes = {"r": 16, "lora_alpha": 32, "target_modules": list(MODULES), "lora_dropout": 0.0, "bias": "none"}
    shapes |= {"use_dora": True} if case.dora else {}
    return AdapterSpec(
        variant="dora" if case.dora else "lora", targets="all-linear", target_modules=MODULES, r=16, lora_alpha=32, scale=2.0,
        init="default", learning_rate=1e-4, peft_class="LoraConfig", optimizer={}, num_parameters=adapter_parameters(base, shapes),
        peft_arguments=shapes | {"task_type": "CAUSAL_LM"},
    )  # fmt: skip


def wanted(case: Case) -> dict:
    """The config's `training` section of the setting."""
    return {
        "num_processes": case.ranks, "precision": case.precision, "zero_stage": case.stage, "micro_batch_size": case.micro,
        "batch_size": case.micro * case.ranks, "packing": case.packing, "gradient_checkpointing": case.checkpointing,
        "epochs": 1.0, "max_steps": None, "warmup_fraction": 0.0, "lr_schedule": "constant", "weight_decay": 0.0,
        "max_grad_norm": 1.0, "checkpoint_every": 1000, "keep_checkpoints": 1, "seed": 0, "quantize": case.quantize,
    }  # fmt: skip


def profiled(rows: list[TokenRow]) -> DatasetProfile:
    """What the plan reads of a profile; the rest is empty."""
    lengths = sorted(len(row.input_ids) for row in rows)
    labels = [sum(row.label_mask) for row in rows]

    def spread(counts: list[int]) -> Quantiles:
        return Quantiles(min(counts), 0, 0, 0, max(counts), sum(counts) / len(counts))

    total = sum(lengths)
    split = SplitProfile(
        len(rows), total, total - sum(labels), sum(labels), spread(lengths), spread(labels), 0, 0, 0, 0
    )
    nothing = FileRef("x", "0", 0)
    return DatasetProfile("d", "m", lengths[-1], split, split, 0, 0.0, 0.0, 0, 0.0, 0.0, (), nothing, nothing)


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


def write(number: int, found: dict) -> None:
    """Add one setting's result and count again what all of them say."""
    import deepspeed
    import peft
    import torch
    import transformers

    before = json.loads(RESULTS.read_text())["settings"] if RESULTS.exists() else {}
    settings = before | {str(number): found}
    answer = {
        "settings": dict(sorted(settings.items(), key=lambda pair: int(pair[0]))),
        "memory, from sizes and rows alone": errors(settings, "computed_error", "computed_gib", "peak_gib"),
        "memory, after the trial": errors(settings, "planned_error", "planned_gib", "peak_gib"),
        "time of the steps, by the clock": errors(
            settings, "time_error", "planned_seconds_of_steps", "seconds_of_steps"
        ),
        "time of the steps, processor seconds": errors(
            settings, "processor_time_error", "planned_processor_seconds_of_steps", "processor_seconds_of_steps"
        ),
        "machine": f"{cpu()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {one.__name__: one.__version__ for one in (torch, transformers, peft, deepspeed)},
    }
    RESULTS.write_text(json.dumps(answer, indent=1) + "\n")
    print(json.dumps({name: value for name, value in answer.items() if name.startswith(("memory", "time"))}))


def errors(settings: dict, error: str, told: str, really: str) -> dict:
    """Median and largest absolute relative error, and how many lay inside low to high."""
    values = [one for one in settings.values() if error in one]
    if not values:
        return {"settings": 0}
    inside = sum(one[told]["low"] <= one[really] <= one[told]["high"] for one in values)
    sizes = [abs(one[error]) for one in values]
    return {
        "settings": len(values),
        "median_absolute_error": round(statistics.median(sizes), 3),
        "largest_absolute_error": max(sizes),
        "inside_low_to_high": inside,
    }


if __name__ == "__main__":
    main()
