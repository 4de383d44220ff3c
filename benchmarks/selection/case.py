"""One setting as a way of choosing sees it."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.schedule import GRID, best_rate, nearest, next_rate
from benchmarks.selection.sweep.table import Run, Table
from lora_select.records import Evidence
from lora_select.selection.calibration import Calibration, reference_rate, tempered
from lora_select.selection.rule import SHARE_FACTOR

MLP, EVA = "lora-mlp-only-r16", "eva-all-linear-r16"


@final
@dataclass(frozen=True)
class Case:
    """One setting as a strategy sees it: what was run, numbers by candidate, constants of the other settings.

    `shares` are tangent shares, `factors` 1 / displacement, `published` published rates over LoRA's where there is no displacement.
    `displacement` is LoRA's own.
    """

    table: Table
    shares: Mapping[str, float]
    factors: Mapping[str, float]
    published: Mapping[str, float]
    constants: Calibration
    displacement: float = 0.0

    def rate(self, candidate: str) -> float:
        """The predicted rate, on the grid."""
        home = reference_rate(self.table.setting.steps, self.constants, self.displacement)
        transferred = tempered(self.factors.get(candidate, 1.0), self.constants)
        return nearest(home * self.published.get(candidate, transferred))

    @property
    def candidates(self) -> list[str]:
        """Those with a bracketed best rate, in the order in which they were run."""
        return [key for key in dict.fromkeys(run.candidate for run in self.table.outcomes) if best_run(self.table, key)]

    def aligned(self, key: str = EVA) -> bool:
        """Whether the candidate's tangent share is more than twice LoRA's."""
        return self.shares.get(key, 0.0) > SHARE_FACTOR * self.shares.get(REFERENCE, 1.0)

    def known(self, choices: Sequence["Choice"]) -> list["Choice"]:
        """Those that the sweep has run."""
        return [choice for choice in choices if choice.run in self.table.outcomes]


@final
@dataclass(frozen=True)
class Choice:
    """A run that a strategy would make, and the probes that it ran before, in full runs.

    `gain` is what the probes predict, if they do; `rivals` how many others than LoRA could have been chosen.
    """

    run: Run
    probes: float = 0.0
    gain: Evidence | None = None
    rivals: int = 0


Strategy = Callable[[Case], Sequence[Choice]]
"""Equally likely choices; none where the sweep has not run what the strategy asks for."""


def base_loss(table: Table) -> float:
    """The base model on the odd rows, nats per label token."""
    base = table.base
    assert base is not None
    return sum(base.held_out[1::2]) / sum(base.labels[1::2])


def seen_loss(table: Table, run: Run) -> float:
    """Summed loss on the even rows, infinite for a diverged run."""
    held_out = table.outcomes[run].held_out
    return sum(held_out[::2]) if held_out else math.inf


def best_run(table: Table, candidate: str) -> Run | None:
    """The candidate's best rate of the grid at seed 0, if both neighbours were run too; what was run between moves no yardstick."""
    losses = {rate: loss for rate, loss in table.rates(candidate).items() if rate in GRID}
    return None if not losses or next_rate(losses) else Run(candidate, best_rate(losses, 0.0), 0)
