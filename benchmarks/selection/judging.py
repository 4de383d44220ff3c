"""How runs are judged: losses on rows that no strategy saw, the spread between seeds, constants fitted on other tasks, regret."""

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.learning_rate import curves
from benchmarks.selection.case import Case, Choice, base_loss, best_run
from benchmarks.selection.strategies import STRATEGIES
from benchmarks.selection.sweep.candidates import NAMED, REFERENCE
from benchmarks.selection.sweep.schedule import GRID, RUNG, best_rate
from benchmarks.selection.sweep.subject import CAUSAL, PARAMETERS
from benchmarks.selection.sweep.table import RESULTS, STEPS, Run, Table, tables
from benchmarks.selection.sweep.tasks import CONTROLS
from lora_select.selection import calibration
from lora_select.selection.calibration import Calibration
from lora_select.selection.prediction import MINIMUM_SETTINGS

SPECTRA = RESULTS / "spectra.json"
MINIMUM_SEEDS = 3


@final
@dataclass(frozen=True)
class Regret:
    """What a strategy lost on a setting: nats per label token above the best candidate, in seed SDs and as a share of the gain.

    Levels are means over the seeds that were run, of the choice and of the best alike: the luckiest of many runs is no yardstick.
    `sds` is None below three seeds. `forgetting` is the rise of the reference loss, None where every choice diverged; `cost`
    its probes as a share of the runs of a sweep of all candidates. `choice` is empty where several are equally likely.
    """

    setting: str
    choice: str
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


def level(table: Table, run: Run) -> float:
    """Mean of :func:`loss` over the seeds of the run's candidate, rate and length."""
    return statistics.mean(seeds(table, run))


def seeds(table: Table, run: Run) -> list[float]:
    """:func:`loss` of every seed of the run's candidate, rate and length."""
    wanted = dataclasses.replace(run, seed=0)
    return [loss(table, other) for other in table.outcomes if dataclasses.replace(other, seed=0) == wanted]


def best_level(table: Table) -> float:
    """That of the best candidate, each at its best rate."""
    keys = dict.fromkeys(run.candidate for run in table.outcomes)
    return min(level(table, run) for key in keys if (run := best_run(table, key)))


def forgetting(table: Table, run: Run) -> float:
    """Rise of the reference loss, nats per token; infinite for a diverged run."""
    level, base = table.outcomes[run].reference, table.base
    assert base is not None
    return math.inf if level is None else level - base.reference


def seed_sd(table: Table) -> float | None:
    """Standard deviation between seeds on the odd rows, each candidate at its best rate: the median over those with three seeds.

    None where no candidate has three. Three seeds alone know their spread within a factor of four.
    """
    keys = dict.fromkeys(run.candidate for run in table.outcomes)
    known = [seeds(table, best) for key in keys if (best := best_run(table, key))]
    found = [statistics.stdev(losses) for losses in known if len(losses) >= MINIMUM_SEEDS]
    return statistics.median(found) if found else None


def fit(settings: Sequence[Table]) -> Calibration:
    """Constants from these settings; with none of them the public anchor alone."""
    usable = [table for table in settings if best_run(table, REFERENCE)]
    if not usable:
        return calibration.Calibration("no setting", 0, 24, calibration.LONG_RATE, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0)
    logs = [math.log(_gentle(table, 1.0)) for table in usable]
    moves = [math.log(moved) for table in usable if (moved := displacement(table))]
    shifts = [
        math.log(_gentle(table, 1.0) / _gentle(table, RUNG)) for table in usable if table.rates(REFERENCE, share=RUNG)
    ]
    gains = [1 - loss(table, best_run(table, REFERENCE) or Run(REFERENCE, 0, 0)) / base_loss(table) for table in usable]
    sizes = [PARAMETERS[table.setting.model] for table in usable if table.setting.model in PARAMETERS]
    spreads = [
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
        displacement_power=_power(usable),
        seed_sd_share=round(statistics.median(spreads), 4) if spreads else 0.0,
        displacement=_digits(statistics.mean(moves)) if moves else 0.0,
        parameters=(min(sizes), max(sizes)) if sizes else (0, 0),
        displacements=(_digits(min(moves)), _digits(max(moves))) if moves else (0.0, 0.0),
        rows=min(table.setting.rows for table in usable),
        curve=_curve(usable),
    )


def curve_settings(settings: Sequence[Table] | None = None) -> tuple[list[Table], dict[str, float]]:
    """The settings that give the forecast's constants, all that ship where none are named, and the learning rate shipped on each."""
    known = [one for one in settings or tables() if shipped_with(one) and one.setting.model in PARAMETERS]
    return known, {one.setting.name: _shipped_rate(one) for one in known}


def _shipped_rate(table: Table) -> float:
    return calibration.reference_rate(table.setting.steps, calibration.shipped(), displacement(table))


def _curve(settings: Sequence[Table]) -> calibration.Curve | None:
    known = curves.points(*curve_settings(settings))
    return curves.fitted(known) if len({one.setting for one in known}) >= MINIMUM_SETTINGS else None


def _digits(log: float) -> float:
    return float(f"{math.exp(log):.3g}")


def _power(settings: Sequence[Table]) -> float:
    """Least squares of log(best rate over LoRA's) = power x log(predicted ratio), over the candidates that move farther than LoRA."""
    top = bottom = 0.0
    for table in settings:
        home = _gentle(table, 1.0)
        for key, values in spectra_of(table).items():
            predicted = math.log(values.get("factor", 1.0))
            if predicted < 0 and best_run(table, key):
                top += predicted * math.log(_gentle(table, 1.0, key) / home)
                bottom += predicted**2
    return round(top / bottom, 2) if bottom else 1.0


def shipped_with(table: Table) -> bool:
    """Whether the shipped constants are fitted with this setting: a causal model at the sweep's usual number of steps."""
    setting = table.setting
    return setting.task not in CONTROLS and setting.model in CAUSAL and setting.steps == STEPS


def displacement(table: Table) -> float:
    """LoRA's on the setting's model; 0 where it was not kept."""
    return spectra_of(table).get(REFERENCE, {}).get("displacement", 0.0)


def spectra_of(table: Table) -> dict[str, dict[str, float]]:
    """What `spectra` kept of each candidate; nothing where nothing was kept."""
    return (json.loads(SPECTRA.read_text(encoding="utf-8")) if SPECTRA.is_file() else {}).get(table.setting.name, {})


def _gentle(table: Table, share: float, key: str = REFERENCE) -> float:
    """The lowest rate within 1 % of the best loss, as the product takes it."""
    losses = {rate: value for rate, value in table.rates(key, share=share).items() if rate in GRID}
    best = losses[best_rate(losses, 0.0)]
    return min(rate for rate, value in losses.items() if value <= 1.01 * best)


def _sd(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def cases(settings: Sequence[Table], known_settings: Sequence[Table] | None = None) -> list[Case]:
    """Every setting with constants that were fitted on other tasks (of `known_settings`, if given)."""
    pool = settings if known_settings is None else known_settings
    found = []
    for table in settings:
        own = spectra_of(table)
        others = [other for other in pool if other.setting.task.split("-")[0] != table.setting.task.split("-")[0]]
        shares, factors, published = (
            {key: values[name] for key, values in own.items() if name in values}
            for name in ("share", "factor", "published")
        )
        found.append(Case(table, shares, factors, published, fit(others), displacement(table)))
    return found


def regrets(case: Case, name: str) -> Regret | None:
    """Of a way of choosing; None where it asks for runs that were not made."""
    return regret_of(case, STRATEGIES[name](case))


def hindsight(everything: Sequence[Case]) -> tuple[str, list[Regret]]:
    """The candidate that, at its predicted rate, has the lowest median regret, of those that three settings have at least."""
    found = {}
    for key in NAMED:
        made = [regret_of(case, case.known([Choice(Run(key, case.rate(key), 0))])) for case in everything]
        found[key] = [one for one in made if one and one.sds is not None]
    whole = {key: items for key, items in found.items() if len(items) >= MINIMUM_SETTINGS}
    if not whole:
        return "", []
    best = min(whole, key=lambda key: statistics.median(one.sds or 0.0 for one in whole[key]))
    return best, whole[best]


def regret_of(case: Case, choices: Sequence[Choice]) -> Regret | None:
    """Mean over equally likely choices; None where there are none."""
    table, sd = case.table, seed_sd(case.table)
    if not choices or table.base is None:
        return None
    best, kinds = best_level(table), {run.candidate for run in table.outcomes}
    sweep = sum(run.share for run in table.outcomes) * max(
        1.0, len(NAMED) / len(kinds)
    )  # a half-finished one as if whole
    lost = statistics.mean(level(table, choice.run) - best for choice in choices)
    rises = [rise for choice in choices if math.isfinite(rise := forgetting(table, choice.run))]
    forgets = statistics.mean(rises) if rises else None
    cost = statistics.mean(choice.probes for choice in choices) / sweep
    told = f"{choices[0].run.candidate} {choices[0].run.rate:g}" if len(choices) == 1 else ""
    return Regret(
        table.setting.name, told, lost, lost / sd if sd else None, lost / (base_loss(table) - best), forgets, cost
    )
