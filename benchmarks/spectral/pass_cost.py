"""What the measuring pass costs beside the training that it decides on: processor seconds of both in one process, one thread; resumable.

PYTHONPATH=DATA python -m benchmarks.spectral.pass_cost               # SmolLM2 on the quickstart's task, then MiniLM
PYTHONPATH=DATA python -m benchmarks.spectral.pass_cost minilm
PYTHONPATH=DATA python -m benchmarks.spectral.pass_cost --filled smollm2-135m      # microbatches of 2,048 tokens beside those of two rows

Two steps of the training are timed, and a pass of four microbatches as a default run makes it: what streams, and what is done once a layer.
The shares of two plans are computed from these: a training's seconds are those of a step times its steps, a longer pass streams more.
Reading rows and loading models are left out of both.
"""

import json
import platform
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import plans
from benchmarks.selection.sweep import tasks
from benchmarks.selection.sweep.candidates import adapter, candidate
from benchmarks.selection.sweep.subject import Subject, load
from lora_select.config import AnalysisConfig, SelectionConfig
from lora_select.data.labels.tokens import label_loss
from lora_select.data.microbatches import MINIMUM, draw
from lora_select.pipeline.stages.prepare import microbatches
from lora_select.records import Spectra, write_text
from lora_select.selection.learning_rate import learning_rate, lora_displacement
from lora_select.spectral.measuring_pass import analyze
from lora_select.training import trials
from lora_select.training.worker.batches import trained_tokens
from lora_select.variants import CATALOGUE

FILE = Path(__file__).parents[1] / "results" / "pass_cost.json"
TASKS = {"smollm2-135m": "entities", "minilm": "news", "gemma3-270m": "formula"}
ROWS, BATCH, WARM, TIMED, RATE = 192, 8, 1, 2, 1e-3
FULL = 2048
PLANS = {"500 steps of 16 rows": (500, 16), "the quickstart's 30 steps of 16 rows": (30, 16)}


def passed(subject: Subject, size: int = AnalysisConfig().microbatch_size) -> tuple[Spectra, dict[str, float]]:
    """A pass of four microbatches of `size` rows, its tokens, and processor seconds of its two parts."""
    batches = draw(subject.rows.train, microbatches=MINIMUM, size=size, seed=0, pad_id=subject.pad_id)
    ends: dict[bool, float] = {}

    def report(done: int, _total: int, _message: str) -> None:
        ends[done <= MINIMUM] = time.process_time()

    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = analyze(
            subject.model,
            batches,
            loss_fn=label_loss,
            variants=CATALOGUE,
            sketch_size=AnalysisConfig().sketch_size,
            structure=AnalysisConfig().structure,
            seed=0,
            folder=Path(folder),
            dataset_digest="",
            model_digest="",
            progress=report,
        )
    return made, {
        "tokens": made.tokens,
        "stream_seconds": round(ends[True] - began, 2),
        "finish_seconds": round(ends[False] - ends[True], 2),
    }


def filled(subject: Subject, row_tokens: float) -> dict[str, Any]:
    """Passes of the usual microbatches and of filled ones, one after the other: seconds a token, and the learning rate that each gives."""
    found: dict[str, Any] = {}
    for words, size in (("usual", AnalysisConfig().microbatch_size), ("filled", round(FULL / row_tokens))):
        spectra, measured = passed(subject, size)
        reference = candidate("lora", "all-linear", 16, spectra.layers)
        assert reference is not None
        found[words] = measured | {
            "rows": size,
            "seconds_a_token": round(measured["stream_seconds"] / measured["tokens"], 5),
            "displacement": round(lora_displacement(reference), 5),
            "learning_rate": learning_rate(reference, 24),
        }
    return found


def trained(subject: Subject, spectra: Spectra) -> dict[str, float]:
    """Tokens and processor seconds of the timed steps of plain LoRA r 16."""
    reference = candidate("lora", "all-linear", 16, spectra.layers)
    assert reference is not None
    spec, steps, rows = adapter(reference, RATE), WARM + TIMED, subject.rows.train
    plan = plans.alone(rate=RATE, seed=0, steps=steps, epochs=1, batch=BATCH, micro=BATCH, packing=subject.packing)
    ends: list[float] = []
    with trials.adapted(subject.model, spec, plan) as network:
        trials.train(network, spec, plan, rows, subject.pad_id, lambda _: ends.append(time.process_time()))
    tokens = trained_tokens(plan, rows, steps) - trained_tokens(plan, rows, WARM)
    return {"tokens": tokens, "seconds": round(ends[-1] - ends[WARM - 1], 2)}


def one(name: str) -> dict[str, Any]:
    """A model: its pass, its steps, and what each plan's pass is of its training."""
    subject = load(name, tasks.find(TASKS[name]), ROWS)
    spectra, measured = passed(subject)
    steps = trained(subject, spectra)
    row_tokens = sum(len(row.input_ids) for row in subject.rows.train) / ROWS
    second = steps["seconds"] / steps["tokens"]
    found: dict[str, Any] = {
        "task": TASKS[name],
        "row_tokens": round(row_tokens, 1),
        "pass": measured,
        "training": steps,
        "finish_in_trained_tokens": round(measured["finish_seconds"] / second),
        "token_cost": round(measured["stream_seconds"] / measured["tokens"] / second, 2),
        "plans": {},
    }
    for words, (planned, batch) in PLANS.items():
        count = microbatches(AnalysisConfig(), SelectionConfig(), planned * batch, row_tokens)
        cost = measured["stream_seconds"] * count / MINIMUM + measured["finish_seconds"]
        training = planned * batch * row_tokens * second
        found["plans"][words] = {
            "microbatches": count,
            "pass_seconds": round(cost, 1),
            "training_seconds": round(training, 1),
            "share": round(cost / training, 4),
        }
    return found


def main() -> None:
    import torch

    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"models": {}}
    part = "filled" if "--filled" in sys.argv else "models"
    for name in [word for word in sys.argv[1:] if word != "--filled"] or TASKS:
        kept = known.setdefault(part, {})
        if name not in kept:
            kept[name] = _filled(name) if part == "filled" else one(name)
            known["machine"] = f"{platform.machine()}, Python {platform.python_version()}, one thread, busy"
            known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
            write_text(FILE, json.dumps(known, indent=1) + "\n")
        print(name, json.dumps(kept[name], indent=1), flush=True)


def _filled(name: str) -> dict[str, Any]:
    subject = load(name, tasks.find(TASKS[name]), ROWS)
    return filled(subject, sum(len(row.input_ids) for row in subject.rows.train) / ROWS)


if __name__ == "__main__":
    main()
