"""Whether the shipped learning rate harms a classifier of 48 rows: MiniLM judged on rows that no earlier judge has seen; resumable.

PYTHONPATH=DATA python -m benchmarks.learning_rate.few_rows            # trains what is missing, then judges
"""

import functools
import json
import math
import platform
import statistics
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import plans
from benchmarks.selection.sweep import encoder, tasks
from lora_select.evaluation.model_losses import row_losses
from lora_select.records import write_text
from lora_select.spectral.linear_layers import linear_layers
from lora_select.training import trials
from lora_select.variants import named

FILE = Path(__file__).parents[1] / "results" / "few_rows.json"
SHIPPED = {"newsgroup": 8.3e-4, "news": 9.2e-4}
"""Of the setting with 48 rows, constants without its own task (`benchmarks.selection.shipped`)."""
ROWS, STEPS, BATCH, OTHER, JUDGES = 48, 24, 8, 3e-4, 1024
SEEDS = (0, 1, 2)


def runs(task: str) -> dict[str, tuple[float, int]]:
    """Name -> learning rate and seed, seed by seed."""
    rates = (SHIPPED[task], OTHER, float(f"{SHIPPED[task] / 3:.1e}"))
    return {f"{task}, {rate:g}, seed {seed}": (rate, seed) for seed in SEEDS for rate in rates}


def train(known: dict[str, Any], task: str) -> None:
    """Every run of the task that is missing."""
    missing = {name: run for name, run in runs(task).items() if name not in known["runs"]}
    if not missing:
        return
    found = tasks.find(task)
    model, _, pad, rows, _ = encoder.loaded(found, ROWS)
    labels = [
        (name, label) for name in encoder.TASKS for label in sorted(set(tasks.answers(tasks.TASKS[name]).values()))
    ]
    from transformers import AutoTokenizer

    make = functools.partial(
        encoder.class_row,
        AutoTokenizer.from_pretrained(model.name_or_path),
        {pair: number for number, pair in enumerate(labels)},
        task,
    )
    seen = encoder.HELD_OUT + ROWS
    judges = tasks.rows(found, make, 0, seen + JUDGES).held_out[seen:]

    def losses(network: Any) -> list[float]:
        return [round(loss, 4) for loss in row_losses(network, judges, pad, 16, "cpu")]

    known["base"].setdefault(task, losses(model))
    names = list(linear_layers(model))
    for name, (rate, seed) in missing.items():
        spec = named("lora", 16).spec(
            targets="all-linear",
            target_modules=tuple(names),
            learning_rate=rate,
            num_parameters=16,
            placed={"target_modules": names, "task_type": "CAUSAL_LM"},
        )
        plan = plans.alone(rate=rate, seed=seed, steps=STEPS, epochs=STEPS * BATCH / ROWS, batch=BATCH, micro=BATCH)
        with trials.adapted(model, spec, plan) as network:
            trials.train(network, spec, plan, rows.train, pad)
            known["runs"][name] = losses(network.eval())
        known["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
        write_text(FILE, json.dumps(known) + "\n")
        print(*judge(known, task), sep="\n", flush=True)


def judge(known: Mapping[str, Any], task: str) -> list[str]:
    """A line a learning rate: the mean over seeds of loss less the base's, with the standard error over rows."""
    lines, found = [], [(run, known["runs"][name]) for name, run in runs(task).items() if name in known["runs"]]
    for rate in dict.fromkeys(rate for (rate, _), _ in found):
        own = [losses for (other, _), losses in found if other == rate]
        rises = [statistics.mean(row) - base for *row, base in zip(*own, known["base"][task], strict=True)]
        error = statistics.stdev(rises) / math.sqrt(len(rises))
        lines.append(
            f"{task}, {rate:g}, {len(own)} seeds: {statistics.mean(rises):+.4f} ± {error:.4f} over {len(rises)} rows"
        )
    return lines


def main() -> None:
    import torch

    torch.set_num_threads(1)
    known: dict[str, Any] = {"base": {}, "runs": {}}
    if FILE.is_file():
        known = json.loads(FILE.read_text(encoding="utf-8"))
    for task in sys.argv[1:] or SHIPPED:
        train(known, task)
        print(*judge(known, task), sep="\n")


if __name__ == "__main__":
    main()
