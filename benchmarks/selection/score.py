"""The table of regrets over the settings that are there, leave-one-task-out, the claims, and the figure."""

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict

from benchmarks.selection import acceptance, beside, predictors
from benchmarks.selection.case import best_run
from benchmarks.selection.judging import Regret, cases, fit, hindsight, regrets, shipped_with
from benchmarks.selection.strategies import RULES, STRATEGIES
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.subject import ENCODER
from benchmarks.selection.sweep.table import RESULTS, tables
from benchmarks.selection.sweep.tasks import CONTROLS
from lora_select import records
from lora_select.records import write_text
from lora_select.selection import calibration

SCORE = RESULTS / "score.json"
FIGURE = RESULTS / "regret.png"
DRAWN = 6
"""Settings; a way of choosing that fewer have is in the table alone."""


def calibrate() -> int:
    """Fit the constants to the settings that are as the product trains, and write them where the selector reads them.

    That is causal models at the sweep's usual number of steps; the encoder and the other sizes are for judging alone.
    """
    made = fit([table for table in tables() if shipped_with(table)])
    records.write(calibration.FILE, made)
    print(records.to_json(made))
    return 0


def main() -> int:
    """Print the table and the claims, write `score.json` and the figure."""
    usable = [table for table in tables() if best_run(table, REFERENCE)]
    settings = [table for table in usable if table.setting.task not in CONTROLS]
    if not settings:
        print("no setting has a bracketed best rate of plain LoRA yet; run `python -m benchmarks.selection sweep`")
        return 1
    everything = cases(settings)
    controls = cases([table for table in usable if table.setting.task in CONTROLS], settings)
    found = {name: [r for case in everything if (r := regrets(case, name))] for name in STRATEGIES}
    best, items = hindsight(everything)
    found[f"best candidate in hindsight ({best})"] = items
    width = max(map(len, found))
    print(
        f"{'':{width}}  settings  median SD  worst SD  median share of gain  worst  forgetting  cost of sweep  causal models  median SD"
    )
    for name, items in found.items():
        print(f"{name:{width}}  " + (_line(items) if items else "not run"))
    named = ", ".join(f"{case.table.setting.name} ({len(case.candidates)} candidates)" for case in everything)
    print(f"\nSDs over those with three seeds. {len(settings)} settings: {named}\n")
    claims = {rule: acceptance.claims(everything, controls, rule, plain) for rule, plain in RULES.items()}
    for rule, made in claims.items():
        print(f"{rule}\n{acceptance.table_of(made)}\n")
    print("rank correlations over candidates, each at its best rate:", *predictors.lines(everything), sep="\n  ")
    rivals = beside.beside(everything)
    print("", *beside.lines(rivals), sep="\n")
    content = {
        "regrets": {name: [asdict(item) for item in items] for name, items in found.items()},
        "claims": {rule: [asdict(claim) for claim in made] for rule, made in claims.items()},
        "beside LoRA": [asdict(item) for item in rivals],
        "correlations": {case.table.setting.name: predictors.correlations(case) for case in everything},
    }
    write_text(SCORE, json.dumps(content, indent=1) + "\n")
    draw(found)
    return 0


def _line(items: Sequence[Regret]) -> str:
    sds = [item.sds for item in items if item.sds is not None] or [math.nan]
    causal = [item.sds for item in items if item.sds is not None and ENCODER not in item.setting]
    rises = [item.forgetting for item in items if item.forgetting is not None] or [math.nan]
    shares = [item.share_of_gain for item in items]
    return (
        f"{len(items):8}  {statistics.median(sds):9.2f}  {max(sds):8.2f}  {statistics.median(shares):20.1%}  {max(shares):5.1%}  "
        f"{statistics.median(rises):10.3f}  {statistics.median(item.cost for item in items):13.1%}  "
        f"{len(causal):13}  {statistics.median(causal or [math.nan]):9.2f}"
    )


def draw(found: dict[str, list[Regret]]) -> None:
    """One row a strategy that enough settings have, one point a setting."""
    from matplotlib.figure import Figure

    named = [(f"{name} · {len(items)}", items) for name, items in found.items() if len(items) >= DRAWN]
    figure = Figure(figsize=(8, 0.42 * len(named) + 1.1), layout="constrained")
    axes = figure.subplots()
    for place, (_name, items) in enumerate(reversed(named)):
        shares = [100 * max(item.share_of_gain, 0.0) for item in items]
        axes.plot(shares, [place] * len(shares), "o", color="tab:blue", alpha=0.6)
        axes.plot([statistics.median(shares)], [place], "|", color="black", markersize=18, markeredgewidth=2)
    axes.set_yticks(range(len(named)), [name for name, _ in reversed(named)])
    axes.set_xscale("symlog", linthresh=1)
    axes.set_xlim(left=-0.1)
    figure.supxlabel(
        "regret, % of the gain (a point: a setting; the bar: their median; the number: settings)", fontsize=10
    )
    axes.grid(axis="x", alpha=0.3)
    FIGURE.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(FIGURE, dpi=110, metadata={"Software": None})
