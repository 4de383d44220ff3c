"""Whether three folds choose the epoch better than a few kept rows do: MiniLM's last layer as a classifier, few rows, ten epochs; resumable.

PYTHONPATH=DATA python -m benchmarks.rows.folds

Task, rows, learning rates, seeds and the rows that judge are those of `benchmarks.validation`. Three trainings on two thirds of the rows each look
at the third that they did not see; the epoch with the lowest pooled loss is where the training on all rows is stopped.
"""

import json
import math
import platform
import random
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.last_layer import Subject, plan, subject
from benchmarks.validation import EPOCHS, JUDGING, LEAST_SD, ROWS, SEEDS, TASK, TIMES
from lora_select.data.labels.tokens import TokenRow
from lora_select.evaluation.model_losses import row_losses
from lora_select.evaluation.power import paired_error
from lora_select.records import write_text
from lora_select.selection.calibration import reference_rate, shipped
from lora_select.training import trials

FILE = Path(__file__).parents[1] / "results" / "folds.json"
BATCH, FOLDS = 8, 3
LOOKS = (0.0, 0.5, *(float(epoch) for epoch in range(1, EPOCHS + 1)))
"""Epochs after which the loss is looked at."""


def main() -> None:
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"runs": {}}
    known: Subject | None = None
    for rows, times, seed in ((rows, times, seed) for rows in ROWS for times in TIMES for seed in SEEDS):
        name = f"{TASK}, {rows} rows, {times:g} times, seed {seed}"
        if name in found["runs"]:
            continue
        known = known or subject(TASK, max(ROWS), JUDGING)
        found["runs"][name] = run(known, rows, times, seed)
        found["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        found["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
        write_text(FILE, json.dumps(found, indent=1) + "\n")
    print(*report(found["runs"]), sep="\n")


def run(known: Subject, count: int, times: float, seed: int) -> dict[str, Any]:
    """Pooled loss of the folds and loss of the judging rows after each look, nats a row."""
    rows = list(known.train[:count])
    random.Random(seed).shuffle(rows)
    rate = times * reference_rate(math.ceil(count * EPOCHS / BATCH), shipped(), known.moves)
    pooled: dict[float, list[float]] = {epoch: [] for epoch in LOOKS}
    for fold in range(FOLDS):
        kept = rows[fold::FOLDS]
        seen = looks(known, [row for row in rows if row not in kept], kept, rate, seed)
        for epoch in LOOKS:
            pooled[epoch] += seen[epoch]
    judged = looks(known, rows, known.held_out, rate, seed)
    chosen = min(LOOKS, key=lambda epoch: (math.fsum(pooled[epoch]), epoch))
    return {
        "rate": rate,
        "pooled": {epoch: round(statistics.fmean(losses), 5) for epoch, losses in pooled.items()},
        "judged": {epoch: round(statistics.fmean(losses), 5) for epoch, losses in judged.items()},
        "chosen": chosen,
        "chosen_less": {epoch: _less(judged[chosen], judged[epoch]) for epoch in LOOKS},
    }


def looks(
    known: Subject, train: Sequence[TokenRow], seen: Sequence[TokenRow], rate: float, seed: int
) -> dict[float, list[float]]:
    """Losses of the rows in `seen` after each look of a training; infinite after it diverged."""
    planned, spec = plan(rate, seed, len(train), EPOCHS), known.spec(rate)
    at = {epoch: min(planned.total_steps, math.ceil(epoch * len(train) / BATCH)) for epoch in LOOKS}
    losses: dict[int, list[float]] = {}
    with trials.adapted(known.model, spec, planned) as network:

        def after(step: int) -> None:
            if step in at.values():
                network.eval()
                losses[step] = row_losses(network, seen, known.pad_id, 16, "cpu")
                network.train()

        after(0)
        trials.train(network, spec, planned, train, known.pad_id, after)
    return {epoch: losses.get(step, [math.inf] * len(seen)) for epoch, step in at.items()}


def _less(chosen: Sequence[float], other: Sequence[float]) -> list[float]:
    """Judging loss of the chosen epoch less that of another, and the paired standard error."""
    return [
        round(statistics.fmean(chosen) - statistics.fmean(other), 5),
        round(paired_error(other, chosen, [1] * len(other)), 5),
    ]


def report(runs: Mapping[str, Any]) -> list[str]:
    """A line a run, then the two criteria."""
    runs = json.loads(json.dumps(runs))
    lines, within, beaten = [], 0, []
    for name, one in runs.items():
        alike = [
            min(other["judged"].values())
            for key, other in runs.items()
            if key.rsplit(",", 1)[0] == name.rsplit(",", 1)[0]
        ]
        sd = max(LEAST_SD, statistics.stdev(alike)) if len(alike) > 1 else math.nan
        chosen, best = one["judged"][str(one["chosen"])], min(one["judged"].values())
        within += chosen - best <= sd
        better = [epoch for epoch, (less, error) in one["chosen_less"].items() if less > max(0.0, 2 * error)]
        beaten += [f"{name} (by epoch {', '.join(better)})"] if better else []
        lines.append(f"{name}: epoch {one['chosen']:g}, {chosen:.3f}, best {best:.3f}, seed SD {sd:.3f}")
    return [
        *lines,
        f"within one seed SD of the best: {within} of {len(runs)}",
        f"worse beyond noise: {beaten or 'none'}",
    ]


if __name__ == "__main__":
    main()
