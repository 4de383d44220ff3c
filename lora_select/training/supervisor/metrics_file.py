"""How far a training run is, read from its metrics file, in one line."""

import json
from collections.abc import Callable
from pathlib import Path

from lora_select.training import job

Report = Callable[[int, int, str], None]
"""Called with (step, steps, loss, speed and time left)."""


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """The whole lines of the metrics file so far."""
    path = folder / job.METRICS
    if not path.is_file():
        return []
    found = []
    for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def show(folder: Path, total: int, report: Report | None) -> None:
    """Report the last step, the speed of the last 20 and the time left at that speed."""
    if report is None:
        return
    steps = read_metrics(folder)
    if not steps:
        report(0, total, "starting the ranks")
        return
    recent = steps[-20:]
    seconds = sum(step["tokens"] / step["tokens_per_second"] for step in recent)
    speed = sum(step["tokens"] for step in recent) / seconds
    left = (total - steps[-1]["step"]) * seconds / len(recent)
    looked = next(
        (step["validation_loss"] for step in reversed(steps) if step.get("validation_loss") is not None), None
    )
    kept = "" if looked is None else f", validation {looked:.3f}"
    text = f"loss {steps[-1]['loss']:.3f}{kept}  {speed:,.0f} tokens/s  {int(left // 60)}:{int(left % 60):02d} left"
    report(int(steps[-1]["step"]), total, text)
