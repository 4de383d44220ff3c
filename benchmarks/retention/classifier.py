"""The filter on a classifier: what training on one task takes from its skill on others, and what the filter gives back; resumable.

PYTHONPATH=DATA python -m benchmarks.retention.classifier

MiniLM as a classifier by the nearest label name (`benchmarks.selection.sweep.encoder`), trained on newsgroups. Other skills are the loss on news articles,
whose texts (no labels) give the reference's moments, other articles judging, and on package sections, which give nothing.
"""

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.retention.learners import Texts, without_class
from benchmarks.retention.settings import Setting
from benchmarks.retention.study import OTHER, about
from benchmarks.retention.train import plan_of
from benchmarks.selection.sweep import encoder, tasks
from lora_select.data.labels.tokens import TokenRow
from lora_select.evaluation.model_losses import label_counts
from lora_select.records import write_text
from lora_select.retention import filter as filtering
from lora_select.retention import form_losses, forms, moments, path
from lora_select.retention.bench import filter_updates, scaled
from lora_select.retention.forms import Update
from lora_select.training import trials
from lora_select.variants import named

FILE = OTHER / "classifier.json"
TASK, GAVE, OTHERS = "newsgroup", "news", ("news", "section")
MODULES = ("query", "key", "value", "dense")
RATE, ROWS, STEPS, JUDGING = 1e-3, 192, 24, 256
SELECTION = {"": 48, "-many": 480}
"""Rows that choose the strength, by the end of the arm's name."""
ENOUGH = 0.02
Losses = Mapping[str, Sequence[float]]


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for seed in (0, 1, 2):
        if f"seed {seed}" not in found:
            began = time.process_time()
            found[f"seed {seed}"] = run(seed) | {"processor_seconds": round(time.process_time() - began, 1)}
            write_text(FILE, json.dumps(found | about(), sort_keys=True) + "\n")
    print(*report(found), sep="\n")


def run(seed: int) -> dict[str, Any]:
    """One training; summed losses of every judging row by arm, nats (a row has one label), and the strengths."""
    model, _, pad_id, rows, _ = encoder.loaded(tasks.TASKS[TASK], ROWS + max(SELECTION.values()))
    judging = {TASK: rows.held_out[:JUDGING]}
    judging |= {name: _rows(name).held_out[:JUDGING] for name in OTHERS}
    train, selection = rows.train[:ROWS], rows.train[ROWS:]
    updates = _trained(model, train, pad_id, seed)
    modules = {name: forms.linear_modules(model)[name] for name in updates}
    task = moments.stream(Texts(model).eval(), modules, without_class(train), pad_id)
    reference = moments.stream(Texts(model).eval(), modules, without_class(_rows(GAVE).train), pad_id)
    pairs, _, _ = filtering.pairs(task, [reference])
    layers: dict[str, list[str]] = {}
    for name, owner in task.owner.items():
        layers.setdefault(owner, []).append(name)

    def losses(made: Mapping[str, Update], of: Sequence[TokenRow]) -> tuple[float, ...]:
        return form_losses.losses(model, made, of, pad_id)

    def judged(made: Mapping[str, Update]) -> Losses:
        return {name: [round(loss, 4) for loss in losses(made, part)] for name, part in judging.items()}

    arms, strengths = {"base": judged({}), "raw": judged(updates)}, {}
    for end, count in SELECTION.items():
        chosen = selection[:count]
        raw = path.Losses(losses(updates, chosen), label_counts(chosen))

        def search(make: Callable[[float], Mapping[str, Update]], raw: Any = raw, chosen: Any = chosen) -> Any:
            return path.morozov(raw, lambda strength: losses(make(strength), chosen), path.parse_tolerance(None))

        def scale(strength: float) -> Mapping[str, Update]:
            return scaled(updates, strength)

        scales = search(scale)
        shorter = scale(path.shortened(scales))

        def filtered(strength: float, shorter: Any = shorter) -> Mapping[str, Update]:
            return filter_updates(shorter, pairs, layers, strength)

        for arm, points, make in (("scale", scales, scale), ("filter", search(filtered), filtered)):
            best = path.chosen(points)
            strengths[arm + end] = None if best is None else best.strength
            arms[arm + end] = arms["raw"] if best is None else judged(make(best.strength))
    return {"arms": arms, "strengths": strengths}


def _rows(name: str) -> tasks.Rows:
    return encoder.loaded(tasks.TASKS[name], ROWS)[3]


def _trained(model: Any, rows: Sequence[TokenRow], pad_id: int, seed: int) -> Mapping[str, Update]:
    """One epoch of LoRA r 16; the base is left as it was."""
    plan = plan_of(Setting("classifier", "", RATE, rows=ROWS, steps=STEPS, seed=seed))
    spec = named("lora", 16).spec(
        targets="all-linear", target_modules=MODULES, learning_rate=RATE,
        placed={"target_modules": list(MODULES), "task_type": "CAUSAL_LM"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with trials.adapted(model, spec, plan) as network:
            trials.train(network, spec, plan, rows, pad_id)
            network.save_pretrained(folder)
        return forms.read(Path(folder), model, load_base=lambda: model).updates


def rise(made: Mapping[str, Losses], arm: str, name: str) -> tuple[float, float]:
    """Over the base in nats a row, of the task over the raw adapter; and its paired standard error."""
    before = made["raw" if name == TASK else "base"][name]
    return path.paired(before, made[arm][name], [1] * len(before))


def report(found: Mapping[str, Any]) -> Iterator[str]:
    """Every seed, and what the criterion says of the medians."""
    runs = [made for name, made in found.items() if name.startswith("seed")]
    yield f"| seed | arm | strength | {TASK} | {' | '.join(OTHERS)} |\n|" + "---|" * (len(OTHERS) + 3)
    for seed, run in enumerate(runs):
        for arm, losses in run["arms"].items():
            own = "" if arm == "base" else "{:+.3f} ± {:.3f}".format(*rise(run["arms"], arm, TASK))
            others = " | ".join("{:+.3f} ± {:.3f}".format(*rise(run["arms"], arm, name)) for name in OTHERS)
            yield f"| {seed} | {arm} | {run['strengths'].get(arm) or 0:.3g} | {statistics.mean(losses[TASK]):.3f} {own} | {others} |"
    for end in SELECTION:
        for name in OTHERS:
            pairs = [(rise(run["arms"], "raw", name)[0], rise(run["arms"], "filter" + end, name)[0]) for run in runs]
            ratios = [after / before for before, after in pairs if before > ENOUGH]
            told = f"median {statistics.median(ratios):.2f} of {len(ratios)}" if ratios else "training cost nothing"
            yield f"filter{end}, {name}: {told}"
        both = [[math.fsum(rise(run["arms"], one + end, name)[0] for name in OTHERS) / 2 for run in runs] for one in ("scale", "filter")]  # fmt: skip
        yield f"filter{end}: mean of both {statistics.median(both[1]):+.3f}, scaled {statistics.median(both[0]):+.3f}"


if __name__ == "__main__":
    main()
