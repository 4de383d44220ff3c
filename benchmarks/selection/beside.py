"""Every candidate at its best rate beside plain LoRA at its own: the answer to "which variant is best", with hindsight."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.selection.case import Case, best_run
from benchmarks.selection.judging import forgetting, level, seed_sd
from benchmarks.selection.sweep.candidates import REFERENCE


@final
@dataclass(frozen=True)
class Beside:
    """A candidate on a setting, less LoRA: loss in nats per label token and in seed SDs (None below three seeds), and forgetting.

    `rate_ratio` is its best rate over LoRA's.
    """

    candidate: str
    setting: str
    nats: float
    sds: float | None
    forgetting: float
    rate_ratio: float


def beside(cases: Sequence[Case]) -> list[Beside]:
    """All of them; losses are of the odd rows, means over seeds; the best rate was chosen by all rows of seed 0."""
    found = []
    for case in cases:
        home, sd = best_run(case.table, REFERENCE), seed_sd(case.table)
        for key in case.candidates:
            run = best_run(case.table, key)
            if home is None or run is None or key == REFERENCE:
                continue
            nats = level(case.table, run) - level(case.table, home)
            rise = forgetting(case.table, run) - forgetting(case.table, home)
            found.append(
                Beside(key, case.table.setting.name, nats, nats / sd if sd else None, rise, run.rate / home.rate)
            )
    return found


def lines(found: Sequence[Beside]) -> list[str]:
    """One line a candidate, those with the lowest median loss first."""
    groups: dict[str, list[Beside]] = {}
    for item in found:
        groups.setdefault(item.candidate, []).append(item)
    rows = []
    for key, items in groups.items():
        sds = [item.sds for item in items if item.sds is not None] or [math.nan]
        ratio = math.exp(statistics.mean(math.log(item.rate_ratio) for item in items))
        rise = statistics.median(item.forgetting for item in items)
        rows.append(
            (
                statistics.median(sds),
                f"{key:26}{len(items):9}  {statistics.median(sds):+9.2f} [{min(sds):+.2f}, {max(sds):+.2f}]  {rise:+10.3f}  {ratio:9.2f}",
            )
        )
    head = f"{'at its best rate, less LoRA':26} settings  median SD [range]  forgetting  best rate over LoRA's"
    return [head, *(line for _, line in sorted(rows))]
