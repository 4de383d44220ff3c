"""Training speed side by side: our ranks, the same loop without DeepSpeed's engine, Hugging Face Trainer, TRL, LLaMA-Factory.

Same model (SmolLM2-135M), rows, order of rows, effective batch, fp32, LoRA r 16 on all linear layers, threads and ranks; one
after the other, several times; what counts is the median of the ratios of a repetition. A token is a real one, never padding.
Time is processor time in the timed steps, at one thread a rank, of the rank that took most of it in each step: other work on the
machine moves it little, while it can move wall-clock time by any factor; that is written down too.
Every contender gets the same rows in the same steps, so that the losses show that all do the same work.

    S=.peers/trl/lib/python3.11/site-packages  L=.peers/llamafactory/bin/python
    make peers && python -m benchmarks.training --data short --trl-site $S --llama-factory $L

`--sampling grouped` is the peers' best case: each step holds rows of nearly one length, better than their own
`group_by_length` sampler sorts them; `shuffled` is their default. Repetitions add to results/training.json.

TRL and LLaMA-Factory live in places of their own, made by `make peers`; LLaMA-Factory's import of torchaudio, which text does not need, is
answered by an empty module.
"""

import argparse
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import psutil

from lora_select import models
from lora_select.data.labels.tokens import TokenRow, write_rows
from lora_select.data.reading.samples import reference_text
from lora_select.records import AdapterSpec, Range, TrainingPlan
from lora_select.training import heartbeat
from lora_select.training.job import JOB, METRICS, TrainingJob
from lora_select.training.supervisor import launch, metrics_file
from lora_select.training.worker import batches

RESULTS = Path(__file__).parent / "results" / "training.json"
PEERS = Path(__file__).parent / "peers"
MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
BATCH, WARMUP, TIMED = 4, 1, 2
LENGTHS = {"short": ((50, 250), (1, 20)), "long": ((8, 24), (60, 240))}
"""Tokens of prompt and completion, drawn evenly between the two."""
STRATUM = 16
"""Batches drawn and sorted by length for each one that is used, when lengths are grouped."""


class PeerError(RuntimeError):
    """A contender ended without an answer."""


def main() -> None:
    options = parse()
    model = models.resolve("sample:smollm2-135m-instruct").path
    rows = make_rows(model, options.data, options.sampling)
    contenders = everyone(options)
    for repetition in range(options.repetitions):
        runs: dict[str, dict] = {}
        for name, start in contenders.items():
            try:
                with tempfile.TemporaryDirectory() as folder:
                    answer = start(Path(folder), model, rows, options)
            except PeerError as error:  # the others' numbers count all the same
                print(error, flush=True)
                continue
            steps = range(WARMUP, WARMUP + TIMED)
            tokens = sum(len(row.input_ids) for step in steps for row in rows[step * BATCH : (step + 1) * BATCH])
            answer["tokens_per_second"] = round(tokens / sum(answer["cpu_seconds"]), 1)
            answer["by_the_clock"] = round(tokens / sum(answer["seconds"]), 1)
            runs[name] = answer
            print(
                f"{repetition} {name:20} {answer['tokens_per_second']:8} tokens/CPU-s  losses {answer['losses']}",
                flush=True,
            )
        write(options, rows, runs)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=list(LENGTHS), default="short")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--sampling", choices=["shuffled", "grouped"], default="grouped")
    parser.add_argument("--padded", action="store_true", help="ours without packing too")
    parser.add_argument("--only", nargs="*", help="names of contenders")
    parser.add_argument("--trl-site", type=os.path.abspath, help="folder with trl in it")
    parser.add_argument("--llama-factory", type=os.path.abspath, help="python of an environment with llamafactory")
    return parser.parse_args()


def everyone(options: argparse.Namespace) -> dict:
    """Name -> how to run it; ours first."""
    found = {"lora-select": ours}
    if options.padded:
        found["lora-select padded"] = padded
    if options.ranks == 1:
        found["without DeepSpeed"] = without_engine
    found["Trainer + PEFT"] = peer("hf_trainer.py")
    if options.trl_site:
        found["TRL SFTTrainer"] = peer("trl_sft.py", site=options.trl_site)
    if options.llama_factory:
        found["LLaMA-Factory"] = peer("llama_factory.py", python=options.llama_factory)
    return {name: start for name, start in found.items() if not options.only or name in options.only}


def make_rows(model: str, data: str, sampling: str) -> list[TokenRow]:
    """Real English text cut into prompts and completions of random lengths, in the order in which all take them."""
    ids = models.load_tokenizer(model)(reference_text()[:400_000])["input_ids"]
    drawn, place, rows = random.Random(0), 0, []
    for number, (prompt, answer) in enumerate(sizes(drawn, data, sampling)):
        mask = (False,) * prompt + (True,) * answer
        rows.append(TokenRow(f"{number:03}", tuple(ids[place : place + prompt + answer]), mask))
        place += prompt + answer
    return rows


def sizes(drawn: random.Random, data: str, sampling: str) -> list[tuple[int, int]]:
    """Tokens of prompt and completion of each row; grouped: the middle batch of each stratum of many, sorted by length."""
    steps, factor = WARMUP + TIMED, STRATUM if sampling == "grouped" else 1
    many = [tuple(drawn.randint(*bounds) for bounds in LENGTHS[data]) for _ in range(BATCH * steps * factor)]
    if sampling == "shuffled":
        return many
    many.sort(key=sum)
    starts = [BATCH * (STRATUM * step + STRATUM // 2) for step in range(steps)]
    return [one for start in starts for one in many[start : start + BATCH]]


def ours(folder: Path, model: str, rows: list[TokenRow], options: argparse.Namespace, packing: bool = True) -> dict:
    """The product's own path: supervisor, torchrun, DeepSpeed ranks."""
    watched: list[list[float]] = []
    done = threading.Event()
    watcher = threading.Thread(target=watch_ranks, args=(folder, watched, done))
    watcher.start()
    try:
        launch.train(job(folder, model, rows, options, packing), folder)
    finally:
        done.set()
        watcher.join()
    lines = [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]
    ends = [line["timestamp_ms"] / 1000 for line in lines][WARMUP - 1 :]
    return {
        "seconds": [b - a for a, b in itertools.pairwise(ends)],
        "cpu_seconds": [
            max(b - a for a, b in zip(before, after, strict=True))
            for before, after in itertools.pairwise(watched[WARMUP - 1 :])
        ],
        "losses": [line["loss"] for line in lines],
        "peak_gib": lines[-1]["memory_gib"],
    }


def watch_ranks(folder: Path, ends: list[list[float]], done: threading.Event) -> None:
    """Note the processor seconds of the ranks whenever rank 0 has written a step; seen from outside, so that it does nothing for it."""
    while not done.wait(0.02) and len(ends) < WARMUP + TIMED:
        steps = len(metrics_file.read_metrics(folder))
        if steps > len(ends):
            spent = [psutil.Process(rank["pid"]).cpu_times() for rank in heartbeat.read(folder)]
            ends += [[one.user + one.system for one in spent]] * (steps - len(ends))


def padded(folder: Path, model: str, rows: list[TokenRow], options: argparse.Namespace) -> dict:
    return ours(folder, model, rows, options, packing=False)


def without_engine(folder: Path, model: str, rows: list[TokenRow], options: argparse.Namespace) -> dict:
    from lora_select.training.job import write_job

    write_job(folder, job(folder, model, rows, options, packing=True))
    return run(folder, model, rows, options, "plain_loop.py", sys.executable, str(Path.cwd()))


def peer(script: str, site: str | None = None, python: str = sys.executable):
    return lambda folder, model, rows, options: run(folder, model, rows, options, script, python, site)


def run(folder, model, rows, options, script, python, site) -> dict:
    """One contender in processes of its own."""
    steps = WARMUP + TIMED
    task = {
        "model": model, "batch": BATCH, "steps": steps, "warmup_steps": WARMUP, "threads": 1, "out": str(folder / "out.json"),
        "rows": [{"input_ids": row.input_ids, "label_mask": row.label_mask} for row in rows], "learning_rate": 1e-4,
        "lora": {"r": 16, "lora_alpha": 32, "target_modules": list(MODULES)}, "job": str(folder / JOB),
    }  # fmt: skip
    (folder / "task.json").write_text(json.dumps(task))
    ranks = (
        ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(options.ranks)]
        if options.ranks > 1
        else []
    )
    command = [python, *ranks, str(PEERS / script), str(folder / "task.json")]
    environment = os.environ | {
        "OMP_NUM_THREADS": "1",
        "DISABLE_VERSION_CHECK": "1",
        "PYTHONPATH": ":".join(filter(None, [site, str(PEERS)])),
    }
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    answers = [json.loads(file.read_text()) for file in sorted(folder.glob("out.*.json"))]
    if len(answers) != options.ranks:
        raise PeerError(f"{script} ended with code {done.returncode}\n{done.stdout[-1500:]}\n{done.stderr[-3000:]}")
    slowest = [max(steps) for steps in zip(*(one["cpu_seconds"] for one in answers), strict=True)]
    return answers[0] | {"cpu_seconds": slowest}


def job(folder: Path, model: str, rows: list[TokenRow], options: argparse.Namespace, packing: bool) -> TrainingJob:
    """Our job on the same rows: they are put back so that step i takes rows i * BATCH to (i + 1) * BATCH."""
    order = [n for step in range(WARMUP + TIMED) for n in batches.rows_of_step(len(rows), 1.0, BATCH, 0, step)]
    placed = [row for _, row in sorted(zip(order, rows, strict=True), key=lambda pair: pair[0])]
    write_rows(folder / "rows.parquet", placed)
    arguments = {
        "r": 16,
        "lora_alpha": 32,
        "target_modules": list(MODULES),
        "lora_dropout": 0.0,
        "bias": "none",
        "task_type": "CAUSAL_LM",
    }
    spec = AdapterSpec(
        variant="lora", targets="all-linear", target_modules=MODULES, r=16, lora_alpha=32, scale=2.0, init="default", learning_rate=1e-4,
        peft_class="LoraConfig", peft_arguments=arguments, optimizer={}, num_parameters=4_884_480,
    )  # fmt: skip
    plan = TrainingPlan(
        device="cpu", num_processes=options.ranks, zero_stage=0, precision="fp32", micro_batch_size=BATCH // options.ranks,
        gradient_accumulation_steps=1, effective_batch_size=BATCH, epochs=1.0, total_steps=WARMUP + TIMED, warmup_steps=0,
        learning_rate=1e-4, lr_schedule="constant", weight_decay=0.0, max_grad_norm=1.0, checkpoint_every=1000, keep_checkpoints=1,
        gradient_checkpointing=False, seed=0, threads_per_process=1, memory_gib=Range(1, 1, 1), minutes=Range(1, 1, 1),
        disk_gib=0.1, reasons=(), packing=packing,
    )  # fmt: skip
    return TrainingJob(spec, plan, model, "smollm2", str(folder / "rows.parquet"), str(folder / "rows.parquet"))


def write(options: argparse.Namespace, rows: list[TokenRow], runs: dict[str, dict]) -> None:
    """Add a repetition to the results and count again what all of them say."""
    import peft
    import torch
    import transformers

    key = f"{options.data}, {options.ranks} rank{'s' * (options.ranks > 1)}, {options.sampling}"
    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    repetitions = [
        *before.get(key, {}).get("tokens_per_processor_second", []),
        {n: a["tokens_per_second"] for n, a in runs.items()},
    ]
    ours_over = {}
    for name in runs:
        ratios = [one["lora-select"] / one[name] for one in repetitions if {"lora-select", name} <= one.keys()]
        ours_over[name] = {
            "median": round(statistics.median(ratios), 3),
            "range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
    lengths = [len(row.input_ids) for row in rows]
    entry = {
        "rows": len(rows),
        "tokens": sum(lengths),
        "label_tokens": sum(sum(row.label_mask) for row in rows),
        "lengths": [min(lengths), max(lengths)],
        "ranks": options.ranks,
        "threads_per_rank": 1,
        "machine": f"{cpu()}, {len(os.sched_getaffinity(0))} cores",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__},
        "tokens_per_processor_second": repetitions,
        "lora_select_over": ours_over,
        "by_the_clock": [*before.get(key, {}).get("by_the_clock", []), {n: a["by_the_clock"] for n, a in runs.items()}],
        "losses": {name: answer["losses"] for name, answer in runs.items()},
        "peak_gib_of_rank_0": {name: round(answer["peak_gib"], 2) for name, answer in runs.items()},
    }
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(before | {key: entry}, indent=1) + "\n")


def cpu() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


if __name__ == "__main__":
    main()
