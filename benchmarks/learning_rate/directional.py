"""A directional probe at the end of warm-up: along the optimiser's own next step, how far would be best? Three forward passes; resumable.

PYTHONPATH=DATA python -m benchmarks.learning_rate.directional                  # MiniLM's settings, then SmolLM2's and Gemma's, shortest rows first
PYTHONPATH=DATA python -m benchmarks.learning_rate.directional --judge          # probes nothing
PYTHONPATH=DATA python -m benchmarks.learning_rate.directional --most 4

With d the step that the optimizer would take at the shipped learning rate h: g.d and d.Hd from the loss at the place, one step on and one
step back, on 32 training rows. Their ratio times h is the learning rate at which this one step would take off most.
"""

import argparse
import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks import plans
from benchmarks.selection.rates import NEAR, behind, near, vertex
from benchmarks.selection.shipped import settings, shipped_rate
from benchmarks.selection.sweep import tasks
from benchmarks.selection.sweep.runner import MICRO_ROWS
from benchmarks.selection.sweep.subject import ENCODER, Subject, load
from benchmarks.selection.sweep.table import Table
from lora_select.evaluation.model_losses import row_losses
from lora_select.records import AdapterSpec, TrainingPlan, write_text
from lora_select.spectral.linear_layers import linear_layers
from lora_select.training import trials
from lora_select.training.worker import batches, loss, optimizer, rehearsal
from lora_select.training.worker.loop import learning_rate
from lora_select.training.worker.process import seed_micro_batch
from lora_select.variants import named

FILE = Path(__file__).parents[1] / "results" / "directional.json"
ROWS, FARTHEST, FEWEST = 32, 10.0, 3


def spec_of(subject: Subject, rate: float) -> AdapterSpec:
    """Plain LoRA r 16 on all linear layers."""
    names = list(linear_layers(subject.model))
    return named("lora", 16).spec(
        targets="all-linear",
        target_modules=tuple(names),
        learning_rate=rate,
        num_parameters=16,
        placed={"target_modules": names, "task_type": "CAUSAL_LM"},
    )


def probe(subject: Subject, spec: AdapterSpec, plan: TrainingPlan) -> dict[str, float]:
    """Train the warm-up, then look along the next step."""
    rows = subject.rows.train
    with trials.adapted(subject.model, spec, plan) as network:
        made = optimizer.make_optimizer(network, spec, plan)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        before: list[torch.Tensor] = []
        for step in range(plan.warmup_steps + 1):
            numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
            chosen = [rows[number] for number in numbers]
            labels = sum(sum(row.label_mask) for row in chosen)
            optimizer.set_rate(made, learning_rate(plan, min(step, plan.warmup_steps - 1)))
            for slot, part in enumerate(part for part in batches.dealt(chosen, plan)[0] if part):
                seed_micro_batch(plan.seed, step, slot)
                (loss.training_loss(network, rehearsal.batch_of(part, plan, subject.pad_id, "cpu")) / labels).backward()
            torch.nn.utils.clip_grad_norm_(trained, plan.max_grad_norm)
            before = [parameter.detach().clone() for parameter in trained]
            made.step()
            made.zero_grad()
        moves = [after.detach() - start for after, start in zip(trained, before, strict=True)]
        looked = rows[-ROWS:]
        labels = sum(sum(row.label_mask) for row in looked)
        losses = {}
        for name, times in (("on", 1.0), ("here", 0.0), ("back", -1.0)):
            with torch.no_grad():
                for parameter, start, move in zip(trained, before, moves, strict=True):
                    parameter.copy_(start + times * move)
            losses[name] = sum(row_losses(network.eval(), looked, subject.pad_id, 16, "cpu")) / labels
    slope, bend = (losses["back"] - losses["on"]) / 2, losses["back"] + losses["on"] - 2 * losses["here"]
    return {"slope": slope, "bend": bend, "loss": losses["here"]}


def best_step(found: Mapping[str, float]) -> float:
    """The learning rate at which the probed step takes off most; within a factor 10 of the probed one."""
    times = found["slope"] / found["bend"] if found["bend"] > 0 else FARTHEST
    return found["rate"] * min(FARTHEST, max(1 / FARTHEST, times))


def ours(table: Table, subject: Subject) -> bool:
    """Whether the rows are those of the setting, by their labels and tokens."""
    base = table.base
    labels = tuple(sum(row.label_mask) for row in subject.rows.held_out)
    tokens = sum(len(row.input_ids) for row in subject.rows.train)
    return base is not None and (base.labels, base.train_tokens) == (labels, tokens)


def measure(known: dict[str, Any], tables: Sequence[Table], most: int) -> None:
    """Probe what is missing."""
    everything = settings()
    for table in tables:
        setting = table.setting
        if setting.name in known["settings"] or setting.name in known["left_out"]:
            continue
        if most == 0:
            return
        try:
            subject = load(setting.model, tasks.find(setting.task), setting.rows)
        except ValueError as error:
            known["left_out"][setting.name] = str(error)
            continue
        if not ours(table, subject):
            known["left_out"][setting.name] = "its rows are not here any more"
            continue
        rate = shipped_rate(table, everything)
        plan = plans.alone(
            rate=rate, seed=0, steps=setting.steps, epochs=setting.steps * setting.batch / setting.rows,
            batch=setting.batch, micro=MICRO_ROWS, packing=subject.packing,
        )  # fmt: skip
        known["settings"][setting.name] = {"rate": rate} | probe(subject, spec_of(subject, rate), plan)
        known["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
        write_text(FILE, json.dumps(known, indent=1) + "\n")
        print(setting.name, known["settings"][setting.name], flush=True)
        most -= 1


def judge(found: Mapping[str, Mapping[str, float]], tables: Mapping[str, Table]) -> list[str]:
    """The rate = shipped x c x (best step / shipped)^b, c and b by least squares on the other tasks, beside the shipped one."""
    lines: list[str] = []
    regrets: dict[str, dict[str, float]] = {"shipped": {}, "with the probe": {}}
    hits = dict.fromkeys(regrets, 0)
    for name, one in found.items():
        table = tables[name]
        others = [other for other in found if tables[other].setting.task != table.setting.task]
        if len(others) < FEWEST:
            return ["too few settings"]
        x = [math.log(best_step(found[other]) / found[other]["rate"]) for other in others]
        y = [math.log(vertex(tables[other]).rate / found[other]["rate"]) for other in others]
        power, shift = statistics.linear_regression(x, y)
        probed = one["rate"] * math.exp(shift + power * math.log(best_step(one) / one["rate"]))
        for words, rate in (("shipped", one["rate"]), ("with the probe", float(f"{probed:.2g}"))):
            hits[words] += near(rate, table)
            if (regret := behind(table, rate, own=True)) is not None:
                regrets[words][name] = regret
        lines.append(
            f"{name}: shipped {one['rate']:g}, best step {best_step(one):.2g}, the probe says {probed:.2g} (power {power:.2f}), "
            f"best {vertex(table).rate:.2g}"
        )
    for words, values in regrets.items():
        causal = [value for name, value in values.items() if tables[name].setting.model != ENCODER]
        told = f", language models {statistics.median(causal):.2f}" if causal else ""
        lines.append(
            f"{words}: within {NEAR} of the best in {hits[words]} of {len(found)}; behind LoRA's best by {statistics.median(values.values()):.2f} "
            f"seed SDs in the median{told}, {max(values.values()):.2f} at most"
        )
    return lines


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="probe nothing")
    parser.add_argument("--most", type=int, default=10**6, help="stop after so many probes")
    options = parser.parse_args()
    known: dict[str, Any] = {"settings": {}, "left_out": {}}
    if FILE.is_file():
        known = json.loads(FILE.read_text(encoding="utf-8"))
    tables = settings()
    order = sorted(
        tables, key=lambda table: (table.setting.model != ENCODER, table.base.train_tokens if table.base else 0)
    )
    if not options.judge:
        measure(known, order, options.most)
    print(*judge(known["settings"], {table.setting.name: table for table in tables}), sep="\n")


if __name__ == "__main__":
    main()
