"""Constants for a kind of model that the shipped ones were not fitted on: MiniLM's learning rates, leave-one-task-out, read off the swept losses.

python -m benchmarks.selection encoder       # writes results/encoder_rates.json; trains nothing
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.selection.case import best_run
from benchmarks.selection.costs import read_off
from benchmarks.selection.judging import best_level, displacement, fit, level, seed_sd, shipped_with
from benchmarks.selection.shipped import DEFAULTS, settings
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.schedule import GRID
from benchmarks.selection.sweep.subject import ENCODER
from benchmarks.selection.sweep.table import RESULTS, Run, Table
from lora_select.records import write_text
from lora_select.selection.calibration import reference_rate

FILE = RESULTS / "encoder_rates.json"
Rule = Callable[[Table, Sequence[Table], Sequence[Table]], float]
"""(setting, MiniLM's settings of other tasks, language models' settings of other tasks) -> learning rate."""


@final
@dataclass(frozen=True)
class Fitted:
    """The best learning rate of a setting: the vertex of the parabola through the best of the grid and its neighbours, in log rate."""

    rate: float
    epochs: float


def vertex(table: Table) -> Fitted:
    """Of LoRA r 16, losses of the even rows, which judge nothing."""
    best = best_run(table, REFERENCE)
    assert best is not None
    place = GRID.index(best.rate)
    near = [GRID[p] for p in (place - 1, place, place + 1) if 0 <= p < len(GRID)]
    x = [math.log(rate) for rate in near]
    y = [sum(table.outcomes[Run(REFERENCE, rate, 0)].held_out[::2]) for rate in near]
    setting = table.setting
    epochs = setting.steps * setting.batch / setting.rows
    if len(near) < 3 or not all(map(math.isfinite, y)):
        return Fitted(best.rate, epochs)
    slopes = ((y[1] - y[0]) / (x[1] - x[0]), (y[2] - y[1]) / (x[2] - x[1]))
    bend = (slopes[1] - slopes[0]) / (x[2] - x[0])
    top = (x[0] + x[1]) / 2 - slopes[0] / (2 * bend) if bend > 0 else x[1]
    return Fitted(math.exp(min(max(top, x[0]), x[2])), epochs)


def shipped(table: Table, _own: Sequence[Table], causal: Sequence[Table]) -> float:
    """M0: constants of language models."""
    return reference_rate(table.setting.steps, fit(causal), displacement(table))


def by_kind(_table: Table, own: Sequence[Table], _causal: Sequence[Table]) -> float:
    """M1: the geometric mean of the best rates of MiniLM's other tasks, at any number of steps."""
    return math.exp(statistics.mean(math.log(vertex(other).rate) for other in own))


def pooled(table: Table, own: Sequence[Table], causal: Sequence[Table]) -> float:
    """M2: constants of both kinds."""
    return reference_rate(table.setting.steps, fit([*own, *causal]), displacement(table))


def by_epochs(table: Table, own: Sequence[Table], _causal: Sequence[Table]) -> float:
    """M3: M1 over epochs to a power, by least squares on MiniLM's other tasks."""
    found = [vertex(other) for other in own]
    x, y = (
        [math.log(value) for value in values] for values in zip(*((one.epochs, one.rate) for one in found), strict=True)
    )
    middle, height = statistics.mean(x), statistics.mean(y)
    spread = sum((value - middle) ** 2 for value in x)
    power = sum((a - middle) * (b - height) for a, b in zip(x, y, strict=True)) / spread if spread else 0.0
    return math.exp(height + power * (math.log(vertex(table).epochs) - middle))


RULES: dict[str, Rule] = {
    "as shipped, of language models": shipped,
    "of MiniLM's other tasks": by_kind,
    "of both kinds": pooled,
    "of MiniLM's other tasks, and epochs": by_epochs,
}


def behind(table: Table, rate: float) -> float:
    """Seed SDs above the best candidate on the odd rows: of the run where there is one, else read off the swept losses."""
    run, sd = Run(REFERENCE, rate, 0), seed_sd(table)
    assert sd is not None
    loss = level(table, run) if run in table.outcomes else read_off(table, rate)[0]
    return (loss - best_level(table)) / sd


def keep() -> None:
    """Write `encoder_rates.json` and print a line a rule: median, worst, and how far the best default is ahead anywhere."""
    known = settings()
    encoder = [table for table in known if table.setting.model == ENCODER]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name, rule in RULES.items():
        found[name] = {}
        for table in encoder:
            own, causal = (
                [t for t in known if _task(t) != _task(table) and kept(t)]
                for kept in (lambda t: t.setting.model == ENCODER, shipped_with)
            )
            rate = float(f"{rule(table, own, causal):.2g}")
            defaults = [
                other for key, other in DEFAULTS.values() if key == REFERENCE and other >= min(table.rates(REFERENCE))
            ]
            ahead = [behind(table, rate) - behind(table, other) for other in defaults]
            found[name][table.setting.name] = {
                "rate": rate,
                "best": float(f"{vertex(table).rate:.2g}"),
                "behind": round(behind(table, rate), 2),
                **({"best_default_ahead": round(max(ahead), 2)} if ahead else {}),
            }
        values = found[name].values()
        print(
            f"{name}: median {statistics.median(one['behind'] for one in values):.2f}, worst {max(one['behind'] for one in values):.1f}; "
            f"a default ahead by {max(one.get('best_default_ahead', -math.inf) for one in values):.1f} at most; within 1.5 of the best rate in "
            f"{sum(abs(math.log(one['rate'] / one['best'])) <= math.log(1.5) for one in values)} of {len(values)}"
        )
    write_text(FILE, json.dumps(found, indent=1) + "\n")


def _task(table: Table) -> str:
    return table.setting.task.split("-")[0]
