"""Regret of every strategy over the settings that are there, leave-one-task-out, as a table and a figure."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import final

from benchmarks.selection.candidates import REFERENCE
from benchmarks.selection.schedule import GRID, RUNG, best_rate
from benchmarks.selection.strategies import STRATEGIES, Case, best_run
from benchmarks.selection.table import RESULTS, Run, Table, tables
from lora_select import records
from lora_select.records import write_text
from lora_select.selection import calibration
from lora_select.selection.calibration import Calibration

SPECTRA = RESULTS / "spectra.json"
SCORE = RESULTS / "score.json"
FIGURE = RESULTS / "regret.png"


@final
@dataclass(frozen=True)
class Regret:
    """What a strategy lost on a setting: nats per label token above the best run, in seed SDs and as a share of the gain.

    `sds` is None below three seeds. `forgetting` is the rise of the reference loss, None where every choice diverged; `cost` its probes as a share of the sweep's runs.
    """

    setting: str
    nats: float
    sds: float | None
    share_of_gain: float
    forgetting: float | None
    cost: float


def loss(table: Table, run: Run) -> float:
    """Held-out loss on the odd rows, which no strategy sees; nats per label token, infinite for a diverged run."""
    outcome, base = table.outcomes[run], table.base
    assert base is not None
    return math.inf if outcome.diverged else sum(outcome.held_out[1::2]) / sum(base.labels[1::2])


def seed_sd(table: Table) -> float | None:
    """Standard deviation over the seeds of LoRA's best rate, on the odd rows; None below three seeds."""
    best = best_run(table, REFERENCE)
    if best is None:
        return None
    found = [
        loss(table, run)
        for run in table.outcomes
        if (run.candidate, run.rate, run.share) == (REFERENCE, best.rate, 1.0)
    ]
    return statistics.stdev(found) if len(found) > 2 else None


def fit(settings: Sequence[Table]) -> Calibration:
    """Constants from these settings; with none of them the public anchor alone."""
    usable = [table for table in settings if best_run(table, REFERENCE)]
    if not usable:
        return calibration.Calibration("no setting", 0, 24, calibration.LONG_RATE, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0)
    logs = [math.log(_gentle(table, 1.0)) for table in usable]
    shifts = [
        math.log(_gentle(table, 1.0) / _gentle(table, RUNG)) for table in usable if table.rates(REFERENCE, share=RUNG)
    ]
    gains = [1 - loss(table, best_run(table, REFERENCE) or Run(REFERENCE, 0, 0)) / _base(table) for table in usable]
    seeds = [
        sd / loss(table, best_run(table, REFERENCE) or Run(REFERENCE, 0, 0))
        for table in usable
        if (sd := seed_sd(table))
    ]
    return Calibration(
        source=", ".join(table.setting.name for table in usable),
        settings=len(usable),
        steps=round(statistics.mean(table.setting.steps for table in usable)),
        rate=float(f"{math.exp(statistics.mean(logs)):.2e}"),
        rate_log_sd=round(_sd(logs), 3),
        gain_share=round(statistics.mean(gains), 3),
        gain_share_sd=round(_sd(gains), 3),
        rung_shift=float(f"{math.exp(statistics.mean(shifts)):.2g}") if shifts else 1.0,
        rung_shift_log_sd=round(_sd(shifts), 3),
        seed_sd_share=round(statistics.median(seeds), 4) if seeds else 0.0,
    )


def _gentle(table: Table, share: float) -> float:
    """The lowest rate within 1 % of the best loss, as the product takes it."""
    losses = {rate: value for rate, value in table.rates(REFERENCE, share=share).items() if rate in GRID}
    best = losses[best_rate(losses, 0.0)]
    return min(rate for rate, value in losses.items() if value <= 1.01 * best)


def _base(table: Table) -> float:
    base = table.base
    assert base is not None
    return sum(base.held_out[1::2]) / sum(base.labels[1::2])


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def cases(settings: Sequence[Table]) -> list[Case]:
    """Every setting with constants that were fitted on the other tasks."""
    known = json.loads(SPECTRA.read_text(encoding="utf-8")) if SPECTRA.is_file() else {}
    return [
        Case(
            table,
            {key: values["share"] for key, values in known.get(table.setting.name, {}).items()},
            {key: values["factor"] for key, values in known.get(table.setting.name, {}).items()},
            fit([other for other in settings if other.setting.task != table.setting.task]),
        )
        for table in settings
    ]


def regrets(case: Case, name: str) -> Regret | None:
    """Mean over the strategy's equally likely choices; None where it asks for runs that were not made."""
    table, sd = case.table, seed_sd(case.table)
    choices = STRATEGIES[name](case)
    finished = [run for run in table.outcomes if run.seed == 0 and run.share == 1.0]
    if not choices or table.base is None:
        return None
    best = min(loss(table, run) for run in finished)
    sweep = sum(run.share for run in table.outcomes)
    lost = statistics.mean(loss(table, choice.run) - best for choice in choices)
    levels = [level for choice in choices if (level := table.outcomes[choice.run].reference) is not None]
    forgets = statistics.mean(levels) - table.base.reference if levels else None
    cost = statistics.mean(choice.probes for choice in choices) / sweep
    return Regret(table.setting.name, lost, lost / sd if sd else None, lost / (_base(table) - best), forgets, cost)


def calibrate() -> int:
    """Fit the constants to all settings and write them where the selector reads them."""
    made = fit(tables())
    records.write(calibration.FILE, made)
    print(records.to_json(made))
    return 0


def main() -> int:
    """Print the table, write `score.json` and the figure."""
    settings = [table for table in tables() if best_run(table, REFERENCE)]
    if not settings:
        print("no setting has a bracketed best rate of plain LoRA yet; run `python -m benchmarks.selection sweep`")
        return 1
    everything = cases(settings)
    found = {name: [r for case in everything if (r := regrets(case, name))] for name in STRATEGIES}
    width = max(map(len, found))
    print(f"{'':{width}}  settings  median SD  worst SD  median share of gain  worst  forgetting  cost of sweep")
    for name, items in found.items():
        print(f"{name:{width}}  " + (_line(items) if items else "not run"))
    print(
        f"\nSDs over those with three seeds. {len(settings)} settings: {', '.join(f'{c.table.setting.name} ({len(c.candidates)} candidates)' for c in everything)}"
    )
    content = {name: [asdict(item) for item in items] for name, items in found.items()}
    write_text(SCORE, json.dumps(content, indent=1) + "\n")
    draw(found)
    return 0


def _line(items: Sequence[Regret]) -> str:
    sds = [item.sds for item in items if item.sds is not None] or [math.nan]
    rises = [item.forgetting for item in items if item.forgetting is not None] or [math.nan]
    shares = [item.share_of_gain for item in items]
    return (
        f"{len(items):8}  {statistics.median(sds):9.2f}  {max(sds):8.2f}  {statistics.median(shares):20.1%}  {max(shares):5.1%}  "
        f"{statistics.median(rises):10.3f}  {statistics.median(item.cost for item in items):13.1%}"
    )


def draw(found: dict[str, list[Regret]]) -> None:
    """One row a strategy, one point a setting."""
    from matplotlib.figure import Figure

    named = [(name, items) for name, items in found.items() if items]
    figure = Figure(figsize=(8, 0.42 * len(named) + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, (_name, items) in enumerate(reversed(named)):
        shares = [100 * max(item.share_of_gain, 0.0) for item in items]
        axes.plot(shares, [place] * len(shares), "o", color="tab:blue", alpha=0.6)
        axes.plot([statistics.median(shares)], [place], "|", color="black", markersize=18, markeredgewidth=2)
    axes.set_yticks(range(len(named)), [name for name, _ in reversed(named)])
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.1)
    axes.set_xlabel("regret, % of the gain over the base model (a point a setting, the bar is the median)")
    axes.grid(axis="x", alpha=0.3)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
