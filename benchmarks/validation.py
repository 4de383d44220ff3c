"""Whether the checkpoint that kept rows choose is the one to keep: MiniLM's last layer as a classifier, few rows, ten epochs; resumable.

PYTHONPATH=DATA python -m benchmarks.validation

The rows to keep, the looks (the first before any step), the choice and patience are the product's (`lora_select.training.validation`), as are loss, optimizer and schedule; DeepSpeed is
left out, as in a race. Other rows, which choose nothing, judge every look and the end of every epoch.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.evaluation.model_losses import row_losses
from lora_select.evaluation.power import paired_error
from lora_select.records import write_text
from lora_select.training import trials, validation
from lora_select.training.worker.batches import total_steps

if TYPE_CHECKING:
    from benchmarks.last_layer import Subject
    from lora_select.data.labels.tokens import TokenRow

FILE = Path(__file__).parent / "results" / "validation.json"
TASK = "newsgroup"
ROWS, EPOCHS, BATCH = (24, 48, 192), 10, 8
TIMES, SEEDS, LEAST_SD = (1.0, 3.0), (0, 1, 2), 0.02
CONSTANT = "constant"
"""The arm at a constant learning rate, which no end of the training shapes."""
SHARE, PATIENCE = 0.05, 3
"""The product's defaults."""
JUDGING = 64


def main() -> None:
    import torch

    from benchmarks.last_layer import subject

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", default=TASK)
    parser.add_argument("--rows", nargs="+", type=int, default=list(ROWS))
    parser.add_argument("--most", type=int, default=10**6, help="stop after so many runs")
    options = parser.parse_args()
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    known: Subject | None = None
    asked = [(rows, times, "cosine") for rows in options.rows for times in TIMES]
    asked += [(rows, TIMES[0], CONSTANT) for rows in options.rows]
    for rows, times, schedule, seed in ((*one, seed) for one in asked for seed in SEEDS):
        name = f"{options.task}, {rows} rows, {times:g} times, {schedule}, seed {seed}"
        if name not in found and options.most:
            options.most -= 1
            known = known or subject(options.task, max(ROWS), JUDGING)
            found[name] = run(known, rows, times, seed, constant=schedule == CONSTANT)
            write_text(FILE, json.dumps(found, indent=1) + "\n")
            print(name, found[name]["chosen"], found[name]["best"], found[name]["last"], flush=True)
    print(*report(found), sep="\n")


def run(known: "Subject", count: int, times: float, seed: int, *, constant: bool) -> dict[str, Any]:
    """One training: what the kept rows said at each look, and what the judging rows said there and at the end of each epoch."""
    from benchmarks.last_layer import plan as planned
    from lora_select.selection.calibration import reference_rate, shipped

    judging, pad_id = known.held_out, known.pad_id
    train, kept = validation.split(known.train[:count], validation.kept_rows(count, SHARE, labels=1.0), seed)
    steps = total_steps(len(train), EPOCHS, BATCH, None)
    rate = times * reference_rate(steps, shipped(), known.moves)
    spec, plan = known.spec(rate), planned(rate, seed, len(train), EPOCHS)
    if constant:
        plan = dataclasses.replace(plan, warmup_steps=max(1, round(0.1 * len(train) / BATCH)), lr_schedule="constant")
    every = validation.steps_between(_tokens(kept), EPOCHS * _tokens(train), steps, EPOCHS) if kept else steps
    epochs = {min(steps, math.ceil(epoch * len(train) / BATCH)) for epoch in range(1, EPOCHS + 1)}
    looks: list[validation.Point] = []
    judged: dict[int, list[float]] = {}

    with trials.adapted(known.model, spec, plan) as network:

        def after(step: int) -> None:
            due = validation.is_due(step, every, steps, EPOCHS)
            if due or step in epochs:
                network.eval()
                judged[step] = row_losses(network, judging, pad_id, 16, "cpu")
                if due and kept and not validation.is_over(looks, PATIENCE, every):
                    looks.append(validation.Point(step, tuple(row_losses(network, kept, pad_id, 16, "cpu"))))
                network.train()

        after(0)
        done = len(trials.train(network, spec, plan, train, pad_id, after))
    last = looks[-1].step if looks else max(judged)
    chosen = best.step if (best := validation.best(looks)) else last
    labels = [sum(row.label_mask) for row in judging]
    seen = {step: losses for step, losses in judged.items() if step <= last}
    return {
        "rate": rate,
        "steps": steps,
        "done": done,
        "kept": len(kept),
        "looks": {point.step: round(statistics.mean(point.losses), 5) for point in looks},
        "judged": {step: round(math.fsum(losses) / sum(labels), 5) for step, losses in judged.items()},
        "chosen": chosen,
        "last": last,
        "best": min(judged, key=lambda step: (math.fsum(judged[step]), step)),
        "chosen_less": {step: _less(judged[chosen], losses, labels) for step, losses in seen.items()},
    }


def _less(chosen: Sequence[float], other: Sequence[float], labels: Sequence[int]) -> list[float]:
    """Judging loss of the chosen checkpoint less that of another, nats per label, and the paired standard error."""
    difference = (math.fsum(chosen) - math.fsum(other)) / sum(labels)
    return [round(difference, 5), round(paired_error(other, chosen, labels), 5)]


def _tokens(rows: "Sequence[TokenRow]") -> int:
    return sum(len(row.input_ids) for row in rows)


def report(found: Mapping[str, Any]) -> list[str]:
    """A line a run, then the two criteria, which are asked of the product's schedule alone."""
    lines, within, judgeable, worse = [], 0, 0, []  # a name's last part is its seed
    for name, run in found.items():
        alike = [other for key, other in found.items() if key.rsplit(",", 1)[0] == name.rsplit(",", 1)[0]]
        bests = [other["judged"][str(other["best"])] for other in _texts(alike)]
        sd = max(LEAST_SD, statistics.stdev(bests)) if len(bests) > 1 else math.nan
        [run] = _texts([run])
        judged = run["judged"]
        chosen, best, last = (judged[str(run[key])] for key in ("chosen", "best", "last"))
        asked = CONSTANT not in name
        judgeable += asked and len(alike) > 1
        within += asked and chosen - best <= sd
        beaten = [step for step, (less, error) in run["chosen_less"].items() if less > 2 * error and less > 0]
        if asked and beaten:
            worse.append(f"{name} (beaten by step {', '.join(beaten)})")
        lines.append(
            f"{name}: base rate {run['rate']:.2g}, kept rows {run['kept']}, chosen {chosen:.3f} (step {run['chosen']}), "
            f"best {best:.3f} (step {run['best']}), last {last:.3f}, seed SD {sd:.3f}"
        )
    return [
        *lines,
        f"within one seed SD of the best: {within} of {judgeable}",
        f"worse beyond noise: {worse or 'none'}",
    ]


def _texts(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """As JSON gives them back: steps are text."""
    return json.loads(json.dumps(list(runs)))


if __name__ == "__main__":
    main()
