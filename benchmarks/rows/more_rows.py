"""Whether losses at few rows tell the loss at four times as many: MiniLM's last layer as a classifier, three tasks, three seeds; resumable.

PYTHONPATH=DATA python -m benchmarks.rows.more_rows

A power law through the losses at N/4, N/2 and N names the loss at 4N. The criterion is in docs/log.md.
"""

import json
import math
import platform
import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.last_layer import Subject, plan, subject
from lora_select.evaluation.model_losses import row_losses
from lora_select.records import write_text
from lora_select.selection.calibration import reference_rate, shipped
from lora_select.training import trials

FILE = Path(__file__).parents[1] / "results" / "more_rows.json"
TASKS, SEEDS = ("section-latest", "news", "newsgroup"), (0, 1, 2)
SIZES = (24, 48, 96, 192, 384, 768)
FROM = (96, 192)
"""N: from it, its half and its quarter to four times it."""
EPOCHS, BATCH, JUDGING = 3, 8, 256
NEAR, FAR = 0.15, 0.3


def main() -> None:
    import torch

    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"losses": {}}
    for task in TASKS:
        missing = [(rows, seed) for seed in SEEDS for rows in SIZES if _name(task, rows, seed) not in found["losses"]]
        known = subject(task, SIZES[-1], JUDGING) if missing else None
        for rows, seed in missing:
            assert known is not None
            found["losses"][_name(task, rows, seed)] = trained(known, rows, seed)
            found["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
            found["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
            write_text(FILE, json.dumps(found, indent=1) + "\n")
    print(*report(found["losses"]), sep="\n")


def _name(task: str, rows: int, seed: int) -> str:
    return f"{task}, {rows} rows, seed {seed}"


def trained(known: Subject, rows: int, seed: int) -> float:
    """Held-out loss after three epochs over the first rows, nats a row."""
    rate = reference_rate(math.ceil(rows * EPOCHS / BATCH), shipped(), known.moves)
    planned, spec = plan(rate, seed, rows, EPOCHS), known.spec(rate)
    with trials.adapted(known.model, spec, planned) as network:
        trials.train(network, spec, planned, known.train[:rows], known.pad_id)
        losses = row_losses(network.eval(), known.held_out, known.pad_id, 16, "cpu")
    return round(statistics.fmean(losses), 5)


def power(rows: Sequence[int], losses: Sequence[float], at: int) -> float:
    """Loss at `at` rows by least squares of log loss on log rows."""
    slope, start = statistics.linear_regression([math.log(n) for n in rows], [math.log(loss) for loss in losses])
    return math.exp(start + slope * math.log(at))


def line(rows: Sequence[int], losses: Sequence[float], at: int) -> float:
    """Loss at `at` rows by least squares of loss on log rows."""
    slope, start = statistics.linear_regression([math.log(n) for n in rows], losses)
    return start + slope * math.log(at)


def errors(losses: Mapping[str, float]) -> Iterator[tuple[str, int, float, float, float]]:
    """Task with seed, N, what came out at 4N, and the relative errors of power law and line."""
    for task in TASKS:
        for seed in SEEDS:
            for most in FROM:
                sizes = (most // 4, most // 2, most)
                names = [_name(task, size, seed) for size in (*sizes, 4 * most)]
                if not set(names) <= set(losses):
                    continue
                *seen, truth = (losses[name] for name in names)
                told = (power(sizes, seen, 4 * most), line(sizes, seen, 4 * most))
                yield f"{task}, seed {seed}", most, truth, *(one / truth - 1 for one in told)


def report(losses: Mapping[str, float]) -> list[str]:
    """A line a forecast, then the criterion."""
    made = list(errors(losses))
    lines = [
        f"{name}, {most} rows: {4 * most} rows gave {truth:.3f}; power law {first:+.0%}, line {second:+.0%}"
        for name, most, truth, first, second in made
    ]
    for place, words in ((3, "power law"), (4, "line")):
        sizes = sorted(abs(one[place]) for one in made)
        far = sum(size <= FAR for size in sizes)
        lines.append(
            f"{words}: median error {statistics.median(sizes):.0%} (asked {NEAR:.0%}), within {FAR:.0%} in {far} of {len(sizes)}"
        )
    return lines


if __name__ == "__main__":
    main()
