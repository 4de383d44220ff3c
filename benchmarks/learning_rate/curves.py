"""What the first part of a training tells of its end: the constants of the forecast, judged on tasks and trainings that gave none.

PYTHONPATH=DATA python -m benchmarks.learning_rate.curves --work FOLDER     # FOLDER holds the trainings of benchmarks.retention

Of the sweep: plain LoRA r 16 at the swept learning rates within a factor 2.5 of the shipped one, every seed.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, final

from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.subject import CAUSAL
from benchmarks.selection.sweep.table import STEPS as USUAL
from benchmarks.selection.sweep.table import Table, tables
from lora_select.records import write_text
from lora_select.selection.calibration import QUARTER, Curve
from lora_select.selection.prediction import lost_so_far, spread

FILE = Path(__file__).parents[1] / "results" / "forecast.json"
TRAINED = Path(__file__).parents[1] / "retention" / "results"
SHARES = (0.05, 0.1, 0.15, 0.25, 0.33, 0.5)
NEAR = 2.5
STEPS = (12, 100)
"""Planned steps for which the forecast is given: the sweep's usual settings have 24, what judges it 16 to 96."""


@final
@dataclass(frozen=True)
class Point:
    """One training: share of the base loss lost by then, and taken off the held-out loss at the end."""

    setting: str
    task: str
    lost: float
    gained: float


def points(settings: Sequence[Table], near: "dict[str, float]", share: float = QUARTER) -> list[Point]:
    """Of the sweep's trainings; `near` holds the shipped learning rate by setting."""
    return [point for table in settings for point in _points(table, near[table.setting.name], share)]


def _points(table: Table, shipped: float, share: float) -> Iterator[Point]:
    base = table.base
    assert base is not None
    before = math.fsum(base.held_out) / sum(base.labels)
    for run, made in table.outcomes.items():
        far = abs(math.log(run.rate / shipped)) > math.log(NEAR)
        if run.candidate == REFERENCE and run.share == 1.0 and not made.diverged and not far:
            gained = 1 - math.fsum(made.held_out) / sum(base.labels) / before
            yield Point(
                table.setting.name,
                table.setting.task.split("-")[0],
                lost_so_far(before, made.train, made.steps, share),
                gained,
            )


def fitted(known: Sequence[Point]) -> Curve:
    """Least squares over these trainings."""
    slope, start = statistics.linear_regression([one.lost for one in known], [one.gained for one in known])
    rest = [one.gained - start - slope * one.lost for one in known]
    seen = [one.lost for one in known]
    return Curve(
        start=round(start, 4),
        slope=round(slope, 4),
        sd=round(statistics.stdev(rest), 4),
        settings=len({one.setting for one in known}),
        runs=len(known),
        lost=(round(min(seen), 3), round(max(seen), 3)),
        steps=STEPS,
    )


def half_width(curve: Curve) -> float:
    """Of the 95 % interval of a new setting, as a share of the base loss."""
    return 1.96 * spread(curve.sd, curve.settings)


def left_out(known: Sequence[Point]) -> dict[str, Any]:
    """Every task told by the others."""
    inside, errors, widths = 0, [], []
    for task in sorted({one.task for one in known}):
        curve = fitted([one for one in known if one.task != task])
        widths.append(half_width(curve))
        for one in known:
            if one.task == task:
                errors.append(abs(one.gained - curve.start - curve.slope * one.lost))
                inside += errors[-1] <= widths[-1]
    return {
        "half_width": round(statistics.fmean(widths), 3),
        "inside": inside,
        "of": len(errors),
        "median_error": round(statistics.median(errors), 3),
    }


def elsewhere(curve: Curve, work: Path) -> dict[str, Any]:
    """The trainings of `benchmarks.retention`, which gave no constant: what was told and what came out."""
    found = {}
    for file in sorted(TRAINED.glob("*.json")):
        made, steps = json.loads(file.read_text(encoding="utf-8")), work / file.stem / "training.json"
        if not steps.is_file() or not {"base", "raw"} <= set(made["arms"]):
            continue
        losses = json.loads(steps.read_text(encoding="utf-8"))["losses"]
        before, after = (made["arms"][arm]["means"]["task"] for arm in ("base", "raw"))
        seen = lost_so_far(before, losses, len(losses), QUARTER)
        told, gained = curve.start + curve.slope * seen, 1 - after / before
        given = curve.lost[0] <= seen <= curve.lost[1] and STEPS[0] <= len(losses) <= STEPS[1]
        found[file.stem] = {
            "steps": len(losses), "rate": made["setting"]["rate"], "variant": made["setting"]["variant"], "given": given,
            "told": round(told, 3), "gained": round(gained, 3), "inside": abs(told - gained) <= half_width(curve),
        }  # fmt: skip
    return found


def longer(curve: Curve, every: Sequence[Table]) -> list[dict[str, Any]]:
    """The sweep's language-model trainings of more steps, at any learning rate: they gave no constant either."""
    found = []
    for table in every:
        if table.setting.model not in CAUSAL or table.setting.steps <= USUAL or table.base is None:
            continue
        before = math.fsum(table.base.held_out) / sum(table.base.labels)
        for run, made in table.outcomes.items():
            if run.candidate == REFERENCE and run.share == 1.0 and not made.diverged:
                told = curve.start + curve.slope * lost_so_far(before, made.train, made.steps, QUARTER)
                gained = 1 - math.fsum(made.held_out) / sum(table.base.labels) / before
                found.append({
                    "setting": table.setting.name, "steps": made.steps, "rate": run.rate, "told": round(told, 3),
                    "gained": round(gained, 3), "inside": abs(told - gained) <= half_width(curve),
                })  # fmt: skip
    return found


def main() -> None:
    from benchmarks.selection.judging import curve_settings

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    options = parser.parse_args()
    settings, near = curve_settings()
    curve = fitted(points(settings, near))
    made = {
        "tasks_left_out": {share: left_out(points(settings, near, share)) for share in SHARES},
        "curve": dataclasses.asdict(curve),
        "half_width": round(half_width(curve), 3),
        "elsewhere": elsewhere(curve, options.work),
        "longer": longer(curve, tables()),
        "versions": {package: metadata.version(package) for package in ("torch", "transformers", "peft")},
    }
    write_text(FILE, json.dumps(made, indent=1) + "\n")
    print(json.dumps(made, indent=1))


if __name__ == "__main__":
    main()
