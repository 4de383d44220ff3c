"""What the shipped learning rate and each trainer's default cost on every setting: read off its own run, or off the swept losses."""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import final

from benchmarks.selection.case import base_loss
from benchmarks.selection.judging import best_level, level, seed_sd
from benchmarks.selection.shipped import SHIPPED, defaults, settings, shipped_rate
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.subject import CAUSAL, ENCODER
from benchmarks.selection.sweep.table import RESULTS, Run, Table
from lora_select.records import write_text

FILE = RESULTS / "shipped.json"
RUN, READ_OFF, AT_LEAST = "run", "read off", "at least"


@final
@dataclass(frozen=True)
class Cost:
    """Nats per label token above the best candidate at its best learning rate of the grid, on rows that chose nothing.

    `seed_sds` is None below three seeds. `share` is of the gain over the base model. `how`: from the run itself; from a monotone cubic through
    LoRA's other losses over the log of the learning rate; or from the lowest of them, where the learning rate lies below it.
    """

    rate: float
    nats: float
    seed_sds: float | None
    share: float
    how: str


def cost(table: Table, run: Run) -> Cost:
    """What a run would have cost on the setting; without the run itself, LoRA r 16 at its learning rate stands for it."""
    best, sd = best_level(table), seed_sd(table)
    if run in table.outcomes:
        loss, how = level(table, run), RUN
    else:
        loss, how = read_off(table, run.rate)
    nats = loss - best
    return Cost(
        run.rate,
        round(nats, 4),
        round(nats / sd, 3) if sd else None,
        round(nats / (base_loss(table) - best), 4),
        how,
    )


def read_off(table: Table, rate: float) -> tuple[float, str]:
    """LoRA's loss at a rate, by a monotone cubic through its swept losses over the log of the rate, and whether the rate lies among them."""
    from scipy.interpolate import PchipInterpolator

    losses = {known: level(table, Run(REFERENCE, known, 0)) for known in table.rates(REFERENCE)}
    places = sorted(known for known, loss in losses.items() if math.isfinite(loss))
    curve = PchipInterpolator([math.log(place) for place in places], [losses[place] for place in places])
    inside = min(max(rate, places[0]), places[-1])
    return float(curve(math.log(inside))), READ_OFF if inside == rate else AT_LEAST


def keep() -> None:
    """Write `shipped.json`, setting -> name -> cost, and print the table of docs/benchmarks.md."""
    known = settings()
    found = {
        table.setting.name: {
            name: cost(table, run)
            for name, run in {SHIPPED: Run(REFERENCE, shipped_rate(table, known), 0), **defaults(table)}.items()
        }
        for table in known
    }
    kept = {setting: {name: asdict(one) for name, one in costs.items()} for setting, costs in found.items()}
    write_text(FILE, json.dumps(kept, indent=1, sort_keys=True) + "\n")
    for words, models in (("MiniLM", (ENCODER,)), ("language models", CAUSAL)):
        chosen = [found[table.setting.name] for table in known if table.setting.model in models]
        print(f"\n{words}, {len(chosen)} settings", *rows(chosen), sep="\n")
        whole = [costs for costs in chosen if all(one.how == RUN for one in costs.values())]
        if whole:
            print("\nthose in which every one was run", *rows(whole), sep="\n")


def rows(found: Sequence[Mapping[str, Cost]]) -> list[str]:
    """A line a name: medians over the settings in which it is known, and in how many of them it was run; a bound is no value."""
    lines = ["| learning rate | settings | of these run | seed SDs | worst | gain lost |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(name for costs in found for name in costs):
        own = [costs[name] for costs in found if name in costs and costs[name].how != AT_LEAST]
        sds = [one.seed_sds for one in own if one.seed_sds is not None]
        told = f"{statistics.median(sds):.2f} | {max(sds):.1f}" if sds else " | "
        lost = f"{100 * statistics.median(one.share for one in own):.1f} %" if own else ""
        lines.append(f"| {name} | {len(own)} | {sum(one.how == RUN for one in own)} | {told} | {lost} |")
    return lines
