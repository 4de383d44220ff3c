"""Whether constants that a user's own runs move pay, on the sweep's tables: `python -m benchmarks.selection own`.

A family of models is left out of the fit of the constants, and so is new. Ten runs of its other tasks, at the rate that these constants give times a
random factor of 1/3 to 3, are the history; the regret of the rate on the held-out task is read off its swept losses, before and after. For the
misleading history every run has the loss that a rate six times lower would have had. No training is run.
"""

import functools
import json
import math
import random
import statistics
from collections.abc import Sequence

from benchmarks.selection.case import base_loss
from benchmarks.selection.costs import read_off
from benchmarks.selection.judging import best_level, displacement, fit, seed_sd, shipped_with
from benchmarks.selection.own_runs import PastTraining, shift_of
from benchmarks.selection.shipped import settings
from benchmarks.selection.sweep.table import RESULTS, Table
from lora_select.records import write_text
from lora_select.selection.calibration import Calibration, reference_rate

FILE = RESULTS / "own.json"
RUNS, DRAWS, APART, MISLED = 10, 10, math.log(3), math.log(6)


def keep() -> None:
    """Write `own.json` and print a line a family, for histories of all the family's other tasks and of two of them."""
    known = settings()
    kept = {}
    for words, tasks in (("runs of any task", 0), ("runs of two tasks", 2)):
        found = {}
        for family in dict.fromkeys(table.setting.model for table in known):
            outside = [table for table in known if table.setting.model != family]
            constants = fit([table for table in outside if shipped_with(table)] or outside)
            own = [table for table in known if table.setting.model == family]
            made = [judged(table, own, constants, tasks) for table in own if seed_sd(table)]
            found[family] = [one for one in made if one]
            print(words, family, len(found[family]), means(found[family]), flush=True)
        print(words, "all", means([one for own in found.values() for one in own]), flush=True)
        kept[words] = found
    write_text(FILE, json.dumps(kept, indent=1) + "\n")


def means(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """In the mean over settings."""
    return {name: round(statistics.mean(float(one[name]) for one in found), 3) for name in list(found[0])[1:]}


def judged(table: Table, family: Sequence[Table], constants: Calibration, tasks: int) -> dict[str, float] | None:
    """Regret on a setting in seed SDs: with the constants, with a history of the family's other tasks, with a misleading one; means over draws."""
    own = table.setting.task.split("-")[0]
    others = [other for other in family if other.setting.task.split("-")[0] != own]
    if not others:
        return None
    moved = statistics.median(known) if (known := [d for t in family if (d := displacement(t))]) else 0.0
    helped, misled, factors, planted, alone = [], [], [], [], []
    for seed in range(DRAWS):
        draw = random.Random(f"{table.setting.name}:{seed}")
        pool = draw.sample(others, min(tasks, len(others))) if tasks else others
        places = [(draw.choice(pool), draw.uniform(-APART, APART)) for _ in range(RUNS)]
        for shift, into in ((0.0, helped), (MISLED, misled)):
            past = [_run(other, x, shift, constants, draw, moved) for other, x in places]
            factor = shift_of(past).factor
            into.append(_regret(table, constants, moved, factor))
            if not shift:
                factors.append(factor)
        apart = draw.choice((-APART, APART))  # a family whose best rates are three times higher or lower
        past = [_run(other, x, apart, constants, draw, moved) for other, x in places]
        planted.append(_regret(table, constants, moved, shift_of(past).factor * math.exp(-apart)))
        alone.append(_regret(table, constants, moved, math.exp(-apart)))
    return {
        "setting": table.setting.name,  # pyright: ignore[reportReturnType]
        "without": round(_regret(table, constants, moved), 3),
        "with": round(statistics.mean(helped), 3),
        "misled": round(statistics.mean(misled), 3),
        "planted, without": round(statistics.mean(alone), 3),
        "planted, with": round(statistics.mean(planted), 3),
        "factor": round(math.exp(statistics.mean(map(math.log, factors))), 3),
    }


def _run(
    table: Table, x: float, shift: float, constants: Calibration, draw: random.Random, moved: float
) -> PastTraining:
    """A run of the history at this log ratio, with the loss of a rate `shift` lower and the noise of a seed."""
    home = reference_rate(table.setting.steps, constants, moved)
    loss = _loss(table, home * math.exp(x - shift))
    noise = draw.gauss(0, _sd(table) or constants.seed_sd_share * loss)
    return PastTraining(table.setting.task, x, (loss + noise) / base_loss(table))


def _regret(table: Table, constants: Calibration, moved: float, factor: float = 1.0) -> float:
    rate = reference_rate(table.setting.steps, constants, moved)
    return (_loss(table, rate * factor) - _best(table)) / (_sd(table) or math.nan)


_sd, _best = functools.cache(seed_sd), functools.cache(best_level)


@functools.cache
def _loss(table: Table, rate: float) -> float:
    return read_off(table, rate)[0]
