"""Forgetting before training: how well learning rate and displacement on task inputs tell it, of the committed sweep, one setting left out at a time.

`python -m benchmarks.learning_rate.forgetting` writes `benchmarks/retention/results/other/forgetting.json`.
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from benchmarks.retention.score import spearman
from benchmarks.retention.study import OTHER, RESULTS, about
from lora_select.records import write_text

SWEEP = RESULTS.parents[1] / "selection" / "results"
LEAST, MOST = 0.01, 2.5
"""Nats a token: below is noise, above the model is broken."""
BUDGETS = (0.05, 0.1, 0.2, 0.5)
LEARNING_RATE, PRODUCT, BOTH = "learning rate", "learning rate x displacement", "the two apart"


@final
@dataclass(frozen=True)
class Run:
    """A training of the sweep: its learning rate, displacement on task inputs, and rise on general text in nats a token."""

    setting: str
    candidate: str
    rate: float
    displacement: float
    rise: float


def runs() -> list[Run]:
    """Whole trainings of language models whose general loss rose within the bounds; controls are left out."""
    spectra = json.loads((SWEEP / "spectra.json").read_text(encoding="utf-8"))
    found = []
    for file in sorted(SWEEP.glob("*.jsonl")):
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        name, known = file.stem, spectra.get(file.stem, {})
        lora = known.get("lora-all-linear-r16", {}).get("displacement")
        if "minilm" in name or "shuffled" in name or lora is None:
            continue
        base = next(line["base"]["reference"] for line in lines if line["kind"] == "setting")
        for outcome in (line["outcome"] for line in lines if line["kind"] == "run"):
            run = outcome["run"]
            factor = 1.0 if run["candidate"] == "lora-all-linear-r16" else known.get(run["candidate"], {}).get("factor")
            if run["share"] != 1.0 or factor is None or outcome["reference"] is None:
                continue
            rise = outcome["reference"] - base
            if LEAST <= rise <= MOST:
                found.append(Run(name, run["candidate"], run["rate"], lora / factor, rise))
    return found


def features(kind: str) -> Callable[[Run], list[float]]:
    """What the line is fitted on, beside a constant."""
    return {
        LEARNING_RATE: lambda run: [math.log(run.rate)],
        PRODUCT: lambda run: [math.log(run.rate * run.displacement)],
        BOTH: lambda run: [math.log(run.rate), math.log(run.displacement)],
    }[kind]


def left_out(every: Sequence[Run], kind: str) -> list[float]:
    """Predicted log rise of each run by a line through the runs of the other settings."""
    row = features(kind)
    predicted = [0.0] * len(every)
    for setting in {run.setting for run in every}:
        others = [run for run in every if run.setting != setting]
        design = np.array([[1.0, *row(run)] for run in others])
        weights = np.linalg.lstsq(design, np.log([run.rise for run in others]), rcond=None)[0]
        for index, run in enumerate(every):
            if run.setting == setting:
                predicted[index] = float(np.dot(weights, [1.0, *row(run)]))
    return predicted


def within_budget(every: Sequence[Run], predicted: Sequence[float]) -> tuple[int, int]:
    """Of each setting, candidate and budget the largest learning rate that is predicted to stay within it: how many stay within twice, of how many."""
    good = count = 0
    for group in {(run.setting, run.candidate) for run in every}:
        mine = [
            (run, value) for run, value in zip(every, predicted, strict=True) if (run.setting, run.candidate) == group
        ]
        for budget in BUDGETS:
            taken = [run for run, value in mine if math.exp(value) <= budget]
            if taken:
                largest = max(run.rate for run in taken)
                rises = [run.rise for run in taken if run.rate == largest]
                good += statistics.mean(rises) <= 2 * budget
                count += 1
    return good, count


def judged(every: Sequence[Run], kind: str) -> dict[str, Any]:
    predicted = left_out(every, kind)
    errors = [value - math.log(run.rise) for run, value in zip(every, predicted, strict=True)]
    good, count = within_budget(every, predicted)
    return {
        "rms_log_error": round(math.sqrt(statistics.mean(error**2 for error in errors)), 3),
        "spearman": round(spearman(predicted, [run.rise for run in every]), 3),
        "within_twice_the_budget": [good, count],
    }


def main() -> None:
    every = runs()
    lora = [run for run in every if run.candidate.startswith("lora-all-linear")]
    found = {
        "runs": len(every),
        "settings": len({run.setting for run in every}),
        "every candidate": {kind: judged(every, kind) for kind in (LEARNING_RATE, PRODUCT, BOTH)},
        "LoRA runs": len(lora),
        "LoRA on all linear layers": {kind: judged(lora, kind) for kind in (LEARNING_RATE, PRODUCT, BOTH)},
    }
    OTHER.mkdir(parents=True, exist_ok=True)
    write_text(OTHER / "forgetting.json", json.dumps(found | about(), indent=1) + "\n")
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
