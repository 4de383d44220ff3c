"""How far learning rates are from the best, leave-one-task-out, read off the swept losses: the shipped ones, and other constants for MiniLM.

python -m benchmarks.selection rates       # writes results/rates.json; trains nothing
"""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

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

FILE = RESULTS / "rates.json"
Rule = Callable[[Table, Sequence[Table], Sequence[Table]], float]
"""(setting, MiniLM's settings of other tasks, language models' settings of other tasks) -> learning rate."""
NEAR = 1.5
"""Factor within which a learning rate counts as near the best."""


@final
@dataclass(frozen=True)
class Fitted:
    """The best learning rate of a setting: the vertex of the parabola through the best of the grid and its neighbours, in log rate."""

    rate: float
    epochs: float


def vertex(table: Table, candidate: str = REFERENCE) -> Fitted:
    """Of LoRA r 16, or of another candidate with a bracketed best rate; losses of the even rows, which judge nothing."""
    best = best_run(table, candidate)
    assert best is not None
    place = GRID.index(best.rate)
    near = [GRID[p] for p in (place - 1, place, place + 1) if 0 <= p < len(GRID)]
    x = [math.log(rate) for rate in near]
    y = [sum(table.outcomes[Run(candidate, rate, 0)].held_out[::2]) for rate in near]
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


def behind(table: Table, rate: float, *, own: bool = False) -> float | None:
    """Seed SDs above the best candidate on the odd rows, or above LoRA's own best learning rate; None below three seeds.

    Of the run where there is one, else read off the swept losses.
    """
    run, sd, lora = Run(REFERENCE, rate, 0), seed_sd(table), best_run(table, REFERENCE)
    if sd is None or lora is None:
        return None
    loss = level(table, run) if run in table.outcomes else read_off(table, rate)[0]
    return (loss - (level(table, lora) if own else best_level(table))) / sd


def near(rate: float, table: Table) -> bool:
    """Whether it is within a factor 1.5 of the best one."""
    return abs(math.log(rate / vertex(table).rate)) <= math.log(NEAR)


def entry(table: Table, rate: float) -> dict[str, Any]:
    """A learning rate on a setting; the best default's lead where it is known."""
    lowest = min(table.rates(REFERENCE))
    defaults = [other for key, other in DEFAULTS.values() if key == REFERENCE and other >= lowest]
    own = behind(table, rate)
    ahead = [own - theirs for other in defaults if own is not None and (theirs := behind(table, other)) is not None]
    return {
        "rate": rate,
        "best": float(f"{vertex(table).rate:.2g}"),
        "near": near(rate, table),
        "behind": _rounded(own),
        "behind_lora": _rounded(behind(table, rate, own=True)),
        "best_default_ahead": _rounded(max(ahead, default=None)),
    }


def ranks() -> dict[str, dict[str, float]]:
    """With alpha = 2 r: the best learning rate of LoRA at r 4, 8, 64 over that at r 16, in every setting that was swept at another rank."""
    found: dict[str, dict[str, float]] = {}
    for table in settings():
        keys = {str(r): f"lora-all-linear-r{r}" for r in (4, 8, 64)}
        there = {r: key for r, key in keys.items() if best_run(table, key) is not None}
        if there:
            home = vertex(table).rate
            found[table.setting.name] = {r: _rounded(vertex(table, key).rate / home) or 0.0 for r, key in there.items()}
    return found


def keep() -> None:
    """Write `rates.json` and print a line a group: median, worst, how far the best default is ahead anywhere, and how many are near the best."""
    known = settings()
    found: dict[str, dict[str, Any]] = {}
    groups: list[tuple[str, Rule, bool]] = [("language models, as shipped", shipped, False)]
    groups += [(f"MiniLM, {name}", rule, True) for name, rule in RULES.items()]
    for words, rule, encoder in groups:
        found[words] = {}
        for table in known:
            if (table.setting.model == ENCODER) != encoder:
                continue
            others = [other for other in known if _task(other) != _task(table)]
            own, causal = [t for t in others if t.setting.model == ENCODER], [t for t in others if shipped_with(t)]
            found[words][table.setting.name] = entry(table, float(f"{rule(table, own, causal):.2g}"))
        values = list(found[words].values())
        told = [f"{sum(one['near'] for one in values)} of {len(values)} within {NEAR} of the best learning rate"]
        for name in ("behind", "behind_lora", "best_default_ahead"):
            some = [one[name] for one in values if one[name] is not None]
            told.append(f"{name} {statistics.median(some):.2f}, at most {max(some):.2f}")
        print(f"{words}: {'; '.join(told)}")
    found["best rate over that of r 16, alpha = 2 r"] = ranks()
    for name, one in ranks().items():
        print(f"{name}: best rate over that of r 16: {', '.join(f'r {r}: {times:.2f}' for r, times in one.items())}")
    write_text(FILE, json.dumps(found, indent=1) + "\n")


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)


def _task(table: Table) -> str:
    return table.setting.task.split("-")[0]
