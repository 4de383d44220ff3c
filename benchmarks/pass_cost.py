"""What the measuring pass costs beside the training that it decides on: processor seconds of both in one process, one thread; resumable.

PYTHONPATH=DATA python -m benchmarks.pass_cost               # SmolLM2 on the quickstart's task, then MiniLM
PYTHONPATH=DATA python -m benchmarks.pass_cost minilm

Some steps of the training are timed, and the pass as a default run plans it: both for 500 steps and for the quickstart's 30. A training's
seconds are those of a step times its steps, so they are extrapolated. Reading rows and loading models are left out of both.
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
from lora_select.data.microbatches import draw
from lora_select.pipeline.stages.prepare import microbatches
from lora_select.records import LayerSpectra, Spectra, write_text
from lora_select.spectral.measuring_pass import analyze
from lora_select.training import trials
from lora_select.variants import CATALOGUE

FILE = Path(__file__).parent / "results" / "pass_cost.json"
TASKS = {"smollm2-135m": "entities", "minilm": "news", "gemma3-270m": "formula"}
ROWS, BATCH, MICRO, WARM, TIMED = 384, 16, 8, 1, 4
PLANS = {"500 steps": 500, "the quickstart's 30 steps": 30}
RATE = 1e-3


def processor(began: float) -> float:
    """Seconds of this process since."""
    return round(time.process_time() - began, 2)


def measured(subject: Subject, count: int, *, structure: bool, seed: int = 0) -> tuple[Spectra, dict[str, float]]:
    """A pass of so many microbatches, and its processor seconds; of them `finish` is what is done once a layer, by the wall's share."""
    size = AnalysisConfig().microbatch_size
    batches = draw(subject.rows.train, microbatches=count, size=size, seed=seed, pad_id=subject.pad_id)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        made = analyze(
            subject.model,
            batches,
            loss_fn=label_loss,
            variants=CATALOGUE,
            sketch_size=AnalysisConfig().sketch_size,
            structure=structure,
            seed=seed,
            folder=Path(folder),
            dataset_digest="",
            model_digest="",
        )
    seconds = processor(began)
    finish = round(seconds * made.finish_seconds / made.seconds, 2)
    return made, {"microbatches": made.microbatches, "tokens": made.tokens, "seconds": seconds, "finish": finish}


def trained(subject: Subject, layers: tuple[LayerSpectra, ...]) -> dict[str, float]:
    """Processor seconds of a step of plain LoRA r 16, and the tokens of a row."""
    reference = candidate("lora", "all-linear", 16, layers)
    assert reference is not None
    spec, steps = adapter(reference, RATE), WARM + TIMED
    plan = plans.alone(rate=RATE, seed=0, steps=steps, epochs=1, batch=BATCH, micro=MICRO, packing=subject.packing)
    ends: list[float] = []
    with trials.adapted(subject.model, spec, plan) as network:
        trials.train(
            network, spec, plan, subject.rows.train, subject.pad_id, lambda _: ends.append(time.process_time())
        )
    tokens = sum(len(row.input_ids) for row in subject.rows.train) / len(subject.rows.train)
    return {"step_seconds": round((ends[-1] - ends[WARM - 1]) / TIMED, 3), "row_tokens": round(tokens, 1)}


def one(name: str) -> dict[str, Any]:
    """A model: its step, its passes, and the share of each plan."""
    subject = load(name, tasks.find(TASKS[name]), ROWS)
    _, first = measured(subject, 4, structure=True)
    spectra, second = measured(subject, 4, structure=False)
    step = trained(subject, spectra.layers)
    rate = step["step_seconds"] / (BATCH * step["row_tokens"])
    found: dict[str, Any] = {
        "task": TASKS[name],
        "batch": BATCH,
        **step,
        "with_structure": first,
        "without": second,
        "finish_in_trained_tokens": round(second["finish"] / rate),
        "token_cost": round((second["seconds"] - second["finish"]) / second["tokens"] / rate, 2),
        "plans": {},
    }
    for words, steps in PLANS.items():
        count = microbatches(AnalysisConfig(), SelectionConfig(), steps * BATCH, step["row_tokens"])
        cost = second if count == second["microbatches"] else measured(subject, count, structure=False)[1]
        share = cost["seconds"] / (steps * step["step_seconds"])
        found["plans"][words] = {
            **cost,
            "training_seconds": round(steps * step["step_seconds"]),
            "share": round(share, 4),
        }
    return found


def main() -> None:
    import torch

    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"models": {}}
    for name in sys.argv[1:] or TASKS:
        if name not in known["models"]:
            known["models"][name] = one(name)
            known["machine"] = f"{platform.machine()}, Python {platform.python_version()}, one thread, busy"
            known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
            write_text(FILE, json.dumps(known, indent=1) + "\n")
        print(name, json.dumps(known["models"][name], indent=1), flush=True)


if __name__ == "__main__":
    main()
