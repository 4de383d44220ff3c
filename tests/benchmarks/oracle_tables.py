"""Planted outcomes of the oracle."""

import math
from pathlib import Path

from benchmarks.selection.sweep.schedule import next_run
from benchmarks.selection.sweep.table import Base, Outcome, Run, Setting, Table

EVA = "eva-all-linear-r16"
SETTING = Setting("task", "model", 64, 24, 8)
ROWS = 8


def outcome(run: Run, level: float, *, odd: float | None = None) -> Outcome:
    """`level` nats per token on the even rows, `odd` on the others."""
    odd = level if odd is None else odd
    rows = tuple(2 * (odd if place % 2 else level) for place in range(ROWS)) if math.isfinite(level) else ()
    return Outcome(run, rows, 3.0 + run.rate if rows else None, (1.0,), round(24 * run.share), 1000, 1.0, 1.0)


def sweep(table: Table, candidate: str, level, *, ratio: float = 1.0, repeats: bool = True) -> list[Run]:
    """Do what the schedule asks for, `level(rate)` being the loss."""
    done = []
    while run := next_run(table, candidate, ratio, repeats=repeats):
        table.add(outcome(run, level(run.rate) + 0.01 * run.seed))
        done.append(run)
        assert len(done) < 50
    return done


def bowl(best: float):
    return lambda rate: 1.0 + 0.1 * math.log(rate / best) ** 2


def empty(folder: Path, setting: Setting = SETTING) -> Table:
    """A table with the base model's line alone: 3 nats per label token, reference loss 3."""
    made = Table(setting, folder)
    made.start(Base((2,) * ROWS, (6.0,) * ROWS, 3.0, 100, 0, {}, "cpu"))
    return made
