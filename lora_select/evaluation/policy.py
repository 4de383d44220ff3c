"""What a champion must show: floors, margins, limits and how sure the gate has to be. Checked once, when it is made."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import final

from lora_select.errors import InputError

DEFAULT_FORGETTING = 0.5
"""The most that loss on a reference set may rise where nothing else is said, nats per token."""
POWER = 0.8
"""How often a run with the rows that the gate asks for should be able to tell."""
LEVEL = 0.95
SEED_NOISE = 0.28
"""How far two seeds of one setting may differ, in standard deviations of one row's paired difference: with it two seeds are promoted in
at most 5 % of runs on each setting of the oracle's trainings at 30, 100 and 300 rows (`benchmarks/promotion.py`; docs/promotion.md)."""


@final
@dataclass(frozen=True)
class Policy:
    """What the gate holds an evaluation against.

    `improves` names metrics of which at least one must be better than the base and than the champion (Holm's step-down keeps
    the error of the family). `floors` maps a metric to the value that the adapter must reach: the least for a metric that is
    better when higher, the most for one that is better when lower. `margins` maps a metric to how much worse than the base and
    the champion it may be, in its unit; it must then be shown to be no worse than that. A metric without a margin vetoes only
    where harm is proven. `max_forgetting` is the most that the loss on reference sets may rise, nats per token: one number for all, or
    one a set. `seed_noise` is the standard deviation of the difference of two seeds of one setting, in units of the standard deviation of
    one row's paired difference: a champion is replaced only by what beats it by more than two seeds differ; 0 looks at the rows alone.

    Raises:
        InputError: a number that is no number, a negative margin or noise, an empty `improves`.
    """

    improves: tuple[str, ...] = ("loss",)
    floors: Mapping[str, float] = field(default_factory=dict)
    margins: Mapping[str, float] = field(default_factory=dict)
    max_forgetting: float | Mapping[str, float] = DEFAULT_FORGETTING
    seed_noise: float = SEED_NOISE

    def __post_init__(self) -> None:
        if not self.improves:
            raise InputError(
                "`promotion.improves` is empty: name the metric that a champion must improve, such as [loss]"
            )
        for place, values in (("floors", self.floors), ("margins", self.margins), ("max_forgetting", self._limits())):
            for name, value in values.items():
                if not math.isfinite(value):
                    raise InputError(f"`promotion.{place}`: {name} is {value}; write a number")
        for place, values in (("margins", self.margins), ("max_forgetting", self._limits())):
            for name, value in values.items():
                if value < 0:
                    raise InputError(
                        f"`promotion.{place}`: {name} is {value:g}, which no adapter can keep; write 0 or more"
                    )
        if not (math.isfinite(self.seed_noise) and self.seed_noise >= 0):
            raise InputError(f"`promotion.seed_noise` is {self.seed_noise}; write 0 or a number such as {SEED_NOISE}")

    def limit(self, reference: str) -> float:
        """The most that loss on the reference set `reference` may rise, nats per token."""
        if isinstance(self.max_forgetting, Mapping):
            return self.max_forgetting.get(reference, DEFAULT_FORGETTING)
        return self.max_forgetting

    def named_references(self) -> tuple[str, ...]:
        """The reference sets that the policy names, which must have been measured."""
        return tuple(self.max_forgetting) if isinstance(self.max_forgetting, Mapping) else ()

    def _limits(self) -> Mapping[str, float]:
        return self.max_forgetting if isinstance(self.max_forgetting, Mapping) else {"all sets": self.max_forgetting}


def quantile(probability: float) -> float:
    """Of the standard normal distribution.

    >>> round(quantile(0.975), 2)
    1.96
    """
    return NormalDist().inv_cdf(probability)
