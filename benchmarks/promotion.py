"""How often the gate errs: the oracle's recorded row losses through the whole gate.

A/A runs: an adapter against itself, two adapters without a true difference, two seeds of one setting. Then power: how often an
adapter that is truly better by a share of the loss is promoted, and whether the number of rows that the gate asks for is enough.
`python -m benchmarks.promotion errors`, `power` and `measured`, some minutes each, write their part of `benchmarks/results/promotion.json`.
"""

import argparse
import collections
import itertools
import json
import math
import platform
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np

from benchmarks.selection.sweep.table import Table, tables
from lora_select.evaluation.evaluate import comparison
from lora_select.evaluation.gate import judge
from lora_select.evaluation.policy import Policy
from lora_select.evaluation.power import paired_error
from lora_select.evaluation.seed_noise import inflation
from lora_select.records import Evaluation, FileRef, MetricComparison, Verdict

FILE = Path(__file__).parent / "results" / "promotion.json"
ROWS = (30, 100, 300)
EFFECTS = (0.05, 0.1, 0.2, 0.3)
POLICIES = {"rows alone": Policy(seed_noise=0.0), "default": Policy()}
TRIED = (0.13, 0.2, 0.24, 0.26, 0.28, 0.3, 0.34)
LEVELS = {f"{level:g}": Policy(seed_noise=level) for level in TRIED}
"""Seed noises among which the default was chosen: what each costs in power and saves in false promotions."""
SEEDS = (3, 5, 10)
"""Trainings from which a user measures the seed noise."""
SAMPLES = 400
"""400 resamples in place of 2,000: five times faster, the interval's ends 2 % of its width less sure."""


@final
@dataclass(frozen=True)
class Pair:
    """Two seeds of one setting on the same rows: summed losses in nats, and the label tokens of each row."""

    setting: str
    base: np.ndarray
    champion: np.ndarray
    challenger: np.ndarray
    labels: np.ndarray

    def centred(self) -> "Pair":
        """The same with no true difference: the mean change a label is taken off every row."""
        change = (self.challenger - self.champion).sum() / self.labels.sum()
        return Pair(self.setting, self.base, self.champion, self.challenger - change * self.labels, self.labels)

    def better_by(self, share: float) -> "Pair":
        """The same with a true difference of this share of the champion's loss."""
        even, level = self.centred(), self.champion.sum() / self.labels.sum()
        return Pair(self.setting, self.base, self.champion, even.challenger - share * level * self.labels, self.labels)

    def drawn(self, count: int, generator: np.random.Generator) -> "Pair":
        """`count` rows with replacement."""
        rows = generator.integers(0, len(self.labels), size=count)
        parts = (self.base[rows], self.champion[rows], self.challenger[rows], self.labels[rows])
        return Pair(self.setting, *parts)


def pairs(found: Sequence[Table]) -> Iterator[Pair]:
    """Both orders of every two seeds of a candidate at a learning rate, where both ended and beat the base model."""
    for table in found:
        groups = collections.defaultdict(list)
        for run, outcome in table.outcomes.items():
            if not outcome.diverged:
                groups[(run.candidate, run.rate, run.share)].append(np.array(outcome.held_out))
        assert table.base is not None
        base, labels = np.array(table.base.held_out), np.array(table.base.labels, dtype=float)
        for losses in groups.values():
            better = [loss for loss in losses if loss.sum() < base.sum()]
            for first in range(len(better)):
                for second in range(len(better)):
                    if first != second:
                        yield Pair(table.setting.name, base, better[first], better[second], labels)


def evaluated(pair: Pair) -> Evaluation:
    """The evaluation of the challenger, with the champion of the pair as champion."""
    against = {"champion": {"loss": _compared(pair.champion, pair)}}
    metrics = {"loss": _compared(pair.base, pair)}
    quiet = MetricComparison(3.0, 3.0, 0.0, (0.0, 0.0), 32, "nats/token", "lower", False, 0.0)
    return Evaluation("a", "d", metrics, against, quiet, (), FileRef("rows.json", "", 0), ())


def verdict(pair: Pair, policy: Policy) -> Verdict:
    """What the gate says of the challenger."""
    return judge(evaluated(pair), "1", policy)


def _compared(before: np.ndarray, pair: Pair) -> MetricComparison:
    labels = [int(count) for count in pair.labels]
    return comparison(
        before.tolist(), pair.challenger.tolist(), labels, unit="nats/token", better="lower", seed=0, samples=SAMPLES
    )


def rates(
    population: Sequence[Pair], rows: int | None, policies: Mapping[str, Policy], draws: int
) -> dict[str, dict[str, Any]]:
    """How often the gate promotes under each policy, all on the same draws: each setting counts once. `rows` None: the rows as they are, once."""
    generator = np.random.default_rng(0)
    promoted: dict[str, dict[str, list[bool]]] = {name: collections.defaultdict(list) for name in policies}
    grouped = collections.defaultdict(list)
    for pair in population:
        grouped[pair.setting].append(pair)
    for setting, group in grouped.items():
        for index in range(draws if rows else len(group)):
            drawn = group[index % len(group)]
            made = evaluated(drawn.drawn(rows, generator) if rows else drawn)
            for name, policy in policies.items():
                promoted[name][setting].append(judge(made, "1", policy).answer == "promote")
    return {name: _summed(by_setting) for name, by_setting in promoted.items()}


def _summed(by_setting: Mapping[str, Sequence[bool]]) -> dict[str, Any]:
    shares = {setting: statistics.mean(values) for setting, values in sorted(by_setting.items())}
    return {
        "rate": round(statistics.mean(shares.values()), 4),
        "runs": sum(map(len, by_setting.values())),
        "settings": len(shares),
        "worst": round(max(shares.values()), 4),
        "worst_setting": max(shares, key=lambda name: shares[name]),
    }


def seed_noise(population: Sequence[Pair]) -> dict[str, Any]:
    """How far two seeds differ, root mean square over pairs, by setting: over the loss, and in SDs of one row's paired difference."""
    found = collections.defaultdict(list)
    for pair in population:
        change = (pair.challenger - pair.champion).sum() / pair.labels.sum()
        row = (
            paired_error(pair.champion.tolist(), pair.challenger.tolist(), pair.labels.tolist())
            * len(pair.labels) ** 0.5
        )
        found[pair.setting].append((change * pair.labels.sum() / pair.champion.sum(), change / row))
    each = {name: np.sqrt(np.square(values).mean(axis=0)).round(4).tolist() for name, values in sorted(found.items())}
    return {
        name: {
            "median": statistics.median(values),
            "lowest": min(values),
            "highest": max(values),
            "settings": values_by,
        }
        for name, values, values_by in (
            (name, [pair[index] for pair in each.values()], {setting: pair[index] for setting, pair in each.items()})
            for index, name in enumerate(("of_the_loss", "of_a_row"))
        )
    }


def asked_rows(population: Sequence[Pair], policy: Policy, draws: int) -> dict[str, Any]:
    """Draw 30 rows; where the gate is undecided and names a number, take so many and see how often it then promotes.

    The new rows are drawn from those 30, so that the true difference is the one measured on them, which is what the gate assumes.
    """
    generator = np.random.default_rng(1)
    asked, promoted = [], []
    for index in range(draws):
        few = population[index % len(population)].better_by(EFFECTS[index % len(EFFECTS)]).drawn(30, generator)
        needed = verdict(few, policy).rows_needed
        if needed is None or needed > 3000:
            continue
        asked.append(needed)
        promoted.append(verdict(few.drawn(needed, generator), policy).answer == "promote")
    share = round(statistics.mean(promoted), 3) if promoted else None
    return {"runs": len(asked), "median_rows": statistics.median(asked) if asked else None, "promoted": share}


def errors(population: Sequence[Pair], draws: int) -> dict[str, Any]:
    """How often an equal is promoted; `draws` simulated evaluations for each setting, number of rows and line."""
    one_each = {(pair.setting, tuple(pair.champion[:3])): pair for pair in population}.values()
    even = [pair.centred() for pair in population]
    itself = [Pair(p.setting, p.base, p.champion, p.champion, p.labels) for p in one_each]
    lines = {"the same adapter": itself, "no true difference": even, "two seeds": population}
    promoted: dict[str, dict[str, Any]] = collections.defaultdict(dict)
    for name, group in lines.items():
        asked = {"rows alone": POLICIES["rows alone"]} if group is itself else POLICIES
        for rows in (*ROWS, None):
            for policy, cell in rates(group, rows, asked, draws).items():
                promoted[name if group is itself else f"{name}, {policy}"][str(rows or "own")] = cell
    tried = {rows: rates(population, rows, LEVELS, draws) for rows in ROWS}
    levels = {name: {str(rows): tried[rows][name] for rows in ROWS} for name in LEVELS}
    return {
        "promoted": promoted,
        "levels_two_seeds": levels,
        "seeds_differ_by": seed_noise(population),
        "pairs": len(population),
    }


def power(population: Sequence[Pair], draws: int) -> dict[str, Any]:
    """How often what is truly better is promoted, by the share of the champion's loss; and whether the rows asked for tell."""
    cells = {
        (effect, rows): rates([pair.better_by(effect) for pair in population], rows, POLICIES | LEVELS, draws)
        for effect in EFFECTS
        for rows in ROWS
    }
    promoted = {
        name: {f"{effect:.0%}": {str(rows): cells[effect, rows][name]["rate"] for rows in ROWS} for effect in EFFECTS}
        for name in POLICIES | LEVELS
    }
    asked = {name: asked_rows(population, policy, 30 * draws) for name, policy in POLICIES.items()}
    return {
        "power": {name: promoted[name] for name in POLICIES},
        "levels_power": {name: promoted[name] for name in LEVELS},
        "rows_asked_for": asked,
    }


def measured(population: Sequence[Pair], draws: int) -> dict[str, Any]:
    """The gate with a seed noise that was measured on the setting itself, from few seeds: what is asked is another number each time.

    The seeds that are measured are drawn from a normal distribution with the setting's recorded spread, on as many rows as the gate
    then has, so that what it asks for is :func:`lora_select.evaluation.seed_noise.estimate`'s by its distribution; pairs are the recorded ones.
    """
    spread = seed_noise(population)["of_a_row"]["settings"]
    grouped = collections.defaultdict(list)
    for pair in population:
        grouped[pair.setting].append(pair)
    cells = collections.defaultdict(lambda: collections.defaultdict(list))
    for effect, rows in itertools.product((None, *EFFECTS), ROWS):
        generator = np.random.default_rng(3)
        for setting, group in grouped.items():
            for index in range(draws):
                pair = group[index % len(group)]
                drawn = (pair if effect is None else pair.better_by(effect)).drawn(rows, generator)
                made = evaluated(drawn)
                for seeds in SEEDS:
                    degrees = seeds - 1
                    ratio = math.sqrt((spread[setting] ** 2 + 1 / rows) * generator.chisquare(degrees) / degrees)
                    answer = judge(made, "1", Policy(seed_noise=ratio * inflation(seeds))).answer
                    cells[seeds, effect, rows][setting].append(answer == "promote")
    summed = {cell: _summed(by_setting) for cell, by_setting in cells.items()}
    return {
        "measured_two_seeds": {str(k): {str(rows): summed[k, None, rows] for rows in ROWS} for k in SEEDS},
        "measured_power": {
            str(k): {
                f"{effect:.0%}": {str(rows): summed[k, effect, rows]["rate"] for rows in ROWS} for effect in EFFECTS
            }
            for k in SEEDS
        },
    }


def main() -> None:
    """Measure one part and write it into the file beside the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("errors", "power", "measured"))
    parser.add_argument(
        "--draws", type=int, help="simulated evaluations a setting and cell (errors: 100, power: 12, measured: 24)"
    )
    parser.add_argument("--out", type=Path, default=FILE)
    given = parser.parse_args()
    population = list(pairs(tables()))
    draws = given.draws or {"errors": 100, "power": 12, "measured": 24}[given.part]
    made = {"errors": errors, "power": power, "measured": measured}[given.part](population, draws)
    before = json.loads(given.out.read_text(encoding="utf-8")) if given.out.exists() else {}
    made = {**before, **made, f"draws_{given.part}": draws, "seed_noise": Policy().seed_noise}
    made[f"{given.part}_made_with"] = (
        f"Python {platform.python_version()}, NumPy {np.__version__}, {platform.machine()}"
    )
    text = json.dumps(made, indent=1, sort_keys=True)
    given.out.write_text(text + "\n", encoding="utf-8")
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
