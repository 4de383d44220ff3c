"""Whether a training will gain, told beforehand: MiniLM's last layer as a classifier over rows, shuffled labels and wrong learning rates; resumable.

PYTHONPATH=DATA python -m benchmarks.whether             # trains what is missing, then judges
PYTHONPATH=DATA python -m benchmarks.whether --judge     # trains nothing

Known before a training: its rows, the base model's loss on them, s = rows x signal / noise of the mean gradient, and how far the plan moves
the model (the sum of its learning rates times LoRA's displacement). A training gains where the held-out loss falls by more than two seed SDs.
"""

import argparse
import functools
import json
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.data.labels.tokens import label_loss
from lora_select.data.microbatches import draw
from lora_select.evaluation.model_losses import row_losses
from lora_select.records import write_text
from lora_select.selection.calibration import reference_rate, shipped
from lora_select.training import trials
from lora_select.training.worker.batches import total_steps
from lora_select.training.worker.loop import learning_rate

if TYPE_CHECKING:
    from benchmarks.last_layer import Subject

FILE = Path(__file__).parent / "results" / "whether.json"
TASKS = ("section-later", "news", "newsgroup")
ROWS, TIMES, EPOCHS, BATCH = (24, 96, 384), (1.0, 1 / 50, 10.0), 2, 8
MORE = (("section-later", 1536),)
"""Larger sets, at the shipped learning rate and a fiftieth."""
HELD_OUT = 128
SEEDS = 2.0
"""Seed SDs that a gain is above."""
NAMES = ("rows", "base_loss", "s", "distance")


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="train nothing")
    parser.add_argument("--most", type=int, default=10**6, help="stop after so many runs")
    options = parser.parse_args()
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"runs": {}}
    if not options.judge:
        train(known, options.most)
    print(*judge(known["runs"]), sep="\n")


def train(known: dict[str, Any], most: int) -> None:
    """Every run that is missing, small ones first."""
    wanted = [(task, rows, times) for rows in ROWS for task in TASKS for times in TIMES]
    wanted += [(task, rows, times) for task, rows in MORE for times in TIMES[:2]]
    done = 0
    for task, rows, times in wanted:
        for labels in ("right", "shuffled"):
            name = f"{task}, {rows} rows, {labels} labels, {times:.3g} times"
            if name in known["runs"] or done >= most:
                continue
            known["runs"][name] = one(task, rows, labels == "shuffled", times)
            known["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
            known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
            write_text(FILE, json.dumps(known, indent=1) + "\n")
            print(name, known["runs"][name], flush=True)
            done += 1


@functools.cache
def known_rows(task: str, count: int, shuffled: bool) -> "Subject":
    """The task, loaded once."""
    from benchmarks.last_layer import subject

    return subject(task, count, HELD_OUT, shuffled=shuffled)


def one(name: str, count: int, shuffled: bool, times: float) -> dict[str, Any]:
    """One training, and what was known before it."""
    from benchmarks.last_layer import plan as planned

    known = known_rows(name, max(*ROWS, count), shuffled)
    rows, pad, moves = known.train[:count], known.pad_id, known.moves
    steps = total_steps(count, EPOCHS, BATCH, None)
    rate = times * reference_rate(steps, shipped(), moves)
    plan, spec = planned(rate, 0, count, EPOCHS), known.spec(rate)
    base = sum(row_losses(known.model, known.held_out, pad, 16, "cpu")) / HELD_OUT
    signal, error, noise = gradient(known.model, rows, pad)
    with trials.adapted(known.model, spec, plan) as network:
        losses = trials.train(network, spec, plan, rows, pad)
        after = math.inf
        if len(losses) == steps:
            after = sum(row_losses(network.eval(), known.held_out, pad, 16, "cpu")) / HELD_OUT
    return {
        "task": name,
        "rows": count,
        "shuffled": shuffled,
        "times": times,
        "rate": rate,
        "steps": steps,
        "base_loss": round(sum(row_losses(known.model, rows[:128], pad, 16, "cpu")) / min(128, count), 5),
        "signal": signal,
        "signal_se": error,
        "noise": noise,
        "s": count * signal / noise,
        "distance": moves * math.fsum(learning_rate(plan, step) for step in range(steps)),
        "held_out_base": round(base, 5),
        "held_out": round(after, 5),
    }


def gradient(model: Any, rows: Sequence[Any], pad: int) -> tuple[float, float, float]:
    """Signal energy of the mean gradient of all linear layers with its jackknife error over microbatches, and the noise energy of one row."""
    import torch

    from lora_select.spectral.linear_layers import linear_layers

    count = min(32, len(rows) // 3)
    weights: list[Any] = [layer.weight.requires_grad_(True) for layer in linear_layers(model).values()]
    size = len(rows) // count
    parts = []
    for batch in draw(rows, microbatches=count, size=size, seed=0, pad_id=pad):
        losses, labels = label_loss(model, batch)
        (losses.sum() / labels.sum()).backward()
        parts.append(torch.cat([weight.grad.flatten() for weight in weights]))
        for weight in weights:
            weight.grad = None
    for weight in weights:
        weight.requires_grad_(False)
    whole = torch.stack(parts)
    gram = (whole @ whole.T).double()
    own = gram.diagonal()
    across = gram.sum() - own.sum()
    mean, energy = float(across) / (count * (count - 1)), float(own.mean())
    without = (across - 2 * (gram.sum(0) - own)) / ((count - 1) * (count - 2))
    error = math.sqrt((count - 1) / count * float((without - without.mean()).square().sum()))
    return mean, error, size * (energy - mean)


def gained(run: Mapping[str, Any]) -> bool:
    """Whether the held-out loss fell by more than two seed SDs."""
    after = run["held_out"]
    return math.isfinite(after) and run["held_out_base"] - after > SEEDS * shipped().seed_sd_share * after


def features(run: Mapping[str, Any]) -> list[float]:
    """What the model of them reads: logarithms, and the square of the distance's, since too far is as bad as not far enough."""
    far = math.log(run["distance"])
    return [math.log(run["rows"]), run["base_loss"], math.log(max(run["s"], 0.1)), far, far**2]


def judge(runs: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """AUC of each number alone, and of a logistic model of all of them that was fitted on the other tasks."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    every = list(runs.values())
    truth = [gained(run) for run in every]
    lines = [f"{len(every)} runs, {sum(truth)} of them gained"]
    scores = {name: [run[name] for run in every] for name in NAMES}
    scores["signal over its error"] = [run["signal"] / max(run["signal_se"], 1e-12) for run in every]
    told: dict[int, float] = {}
    for task in TASKS:
        others = [place for place, run in enumerate(every) if run["task"] != task]
        own = [place for place, run in enumerate(every) if run["task"] == task]
        fitted = make_pipeline(StandardScaler(), LogisticRegression()).fit(
            [features(every[place]) for place in others], [truth[place] for place in others]
        )
        chances = fitted.predict_proba([features(every[place]) for place in own])[:, 1]
        told |= dict(zip(own, map(float, chances), strict=True))
    scores["all of them, fitted on the other tasks"] = [told[place] for place in range(len(every))]
    plain = [place for place, run in enumerate(every) if run["times"] == 1.0]
    for name, values in scores.items():
        whole = roc_auc_score(truth, values)
        some = roc_auc_score([truth[place] for place in plain], [values[place] for place in plain])
        lines.append(f"{name}: AUC {whole:.3f}; at the shipped learning rate alone {some:.3f}")
    return lines


if __name__ == "__main__":
    main()
