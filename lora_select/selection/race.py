"""Who races, how long, what the trials say and what that decides: pure functions. The probes themselves are run by `lora_select.training.trials`.

References:
    Successive halving: Jamieson and Talwalkar, 2016, arXiv:1502.07943. Two rungs at most, and only what is clearly worse is dropped,
    because short runs find bad configurations and cannot order ties.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lora_select.errors import InputError
from lora_select.records import AdapterSpec, Race, Trial
from lora_select.spectral.statistics import CLEAR

FACTORS = (1 / 3, 1.0, 3.0)
"""Rates of a candidate over its predicted one."""
MOST_ENTRANTS = 4
FIRST_RUNG = 0.4
"""Steps of the first rung over the planned ones; each rung has a schedule of its own length."""
MINIMUM_STEPS = 24
"""Of a probe, or the planned ones where they are fewer: probes of 6 steps ordered nothing in the oracle (docs/theory.md)."""
TIE_SHARE = 0.01
"""Losses within this part of the best one are a tie."""
FORGETS_LESS = 0.5
"""What ties on loss is taken for its forgetting when it forgets at most this share of the other's."""
WORTH_SPARING = 0.02
"""Forgetting below this, nats per token of general text, is not worth a change."""


@final
@dataclass(frozen=True)
class Entrant:
    """A candidate that races, and its rates, rising."""

    key: str
    spec: AdapterSpec
    rates: tuple[float, ...]


@final
@dataclass(frozen=True)
class RacePlan:
    """Who races at which rates over how many steps, and sentences on who is left out. `rungs` rise; one or two."""

    entrants: tuple[Entrant, ...]
    rungs: tuple[int, ...]
    notes: tuple[str, ...]


def plan_race(
    specs: Mapping[str, AdapterSpec], planned_steps: int, budget: float, *, fixed_rate: bool = False
) -> RacePlan:
    """Three rates of the reference, a factor 3 apart, for as many steps as the budget pays for; then rivals, all of them for all steps.

    Length comes first: probes of the whole training find the best rate, shorter ones miss it by a factor of three at times, and a
    rival gains less than that (docs/theory.md).

    Args:
        specs: key -> adapter at its predicted rate, the reference first.
        planned_steps: of the full training.
        budget: the most that all probes together may train on, as a share of the full training.
        fixed_rate: each candidate races at its one rate.

    Raises:
        InputError: the budget does not pay for the reference at three rates; says how much would.

    Example:
        A race of one candidate needs three times 24 steps:

        >>> plan_race({"lora": None}, 1000, 0.05)
        Traceback (most recent call last):
        ...
        lora_select.errors.InputError: a race needs at least 3 trials of 24 steps, 7.2 % of the 1000 planned ones; \
the budget is 5 %: raise it, or set it to 0 for a decision without a race
    """
    rates, least = 1 if fixed_rate else len(FACTORS), min(MINIMUM_STEPS, planned_steps)
    if budget * planned_steps < rates * least:
        needed = f"{100 * rates * least / planned_steps:.3g} % of the {planned_steps} planned ones"
        raise InputError(
            f"a race needs at least {rates} trials of {least} steps, {needed}; the budget is {100 * budget:.3g} %: raise it, "
            "or set it to 0 for a decision without a race"
        )
    most = min(MOST_ENTRANTS, max(1, int(budget / rates)))
    keys, left_out = list(specs)[:most], list(specs)[most:MOST_ENTRANTS]
    notes = tuple(
        f"{key} does not race: a budget of {100 * rates * (most + place):.0f} % would pay for it"
        for place, key in enumerate(left_out, start=1)
    )
    rungs = _rungs(len(keys) * rates, budget * planned_steps, planned_steps)
    entrants = tuple(
        Entrant(key, specs[key], (specs[key].learning_rate,) if fixed_rate else _rates(specs[key].learning_rate))
        for key in keys
    )
    return RacePlan(entrants, rungs, notes)


def _rungs(probes: int, steps: float, planned: int) -> tuple[int, ...]:
    """As many steps as `steps` in all pay for, at most `planned`; with a first rung where that is paid for even if nothing is dropped.

    Example:
        >>> _rungs(3, 300.0, 200), _rungs(3, 600.0, 200), _rungs(3, 900.0, 200), _rungs(3, 900.0, 20)
        ((100,), (200,), (80, 200), (20,))
    """
    first = round(FIRST_RUNG * planned)
    if first >= MINIMUM_STEPS and steps >= probes * (first + planned):
        return first, planned
    return (min(planned, int(steps / probes)),)


def _rates(middle: float) -> tuple[float, ...]:
    return tuple(float(f"{middle * factor:.1e}") for factor in FACTORS)


@final
@dataclass(frozen=True)
class Difference:
    """Loss of one model less that of another on the same rows, nats per label token, with its standard error."""

    value: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it is above zero by more than two standard errors."""
        return self.value > CLEAR * self.error


def difference(a: Sequence[float], b: Sequence[float], labels: Sequence[int]) -> Difference:
    """The paired difference a - b of per-row losses: a ratio estimate, its error linearised with rows as the unit.

    Args:
        a: summed loss of each row, nats; b likewise.
        b: see `a`.
        labels: label tokens of each row.

    Example:
        >>> difference([2.0, 4.0], [1.0, 3.0], [1, 1])
        Difference(value=1.0, error=0.0)
    """
    total, rows = sum(labels), len(labels)
    value = math.fsum(x - y for x, y in zip(a, b, strict=True)) / total
    residuals = [x - y - value * count for x, y, count in zip(a, b, labels, strict=True)]
    square = math.fsum(residual**2 for residual in residuals)
    return Difference(value, math.sqrt(rows / max(1, rows - 1) * square) / total)


def mean_loss(losses: Sequence[float], labels: Sequence[int]) -> float:
    """Nats per label token; infinite for a diverged run."""
    return math.fsum(losses) / sum(labels) if losses else math.inf


def probe_name(key: str, rate: float) -> str:
    """`<key> <rate>`, a probe's name in `Race.dropped`."""
    return f"{key} {rate:g}"


def dropped(probes: Sequence[Trial], labels: Sequence[int]) -> dict[str, str]:
    """Probes of one rung that are clearly worse than its best one, by more than 2 standard errors and 1 % of its loss.

    The reference's best rate is never dropped: it is what everything is compared with.
    """
    if not probes:  # no start could be made
        return {}
    best = min(probes, key=lambda probe: mean_loss(probe.held_out, labels))
    kept = min((p for p in probes if p.key == probes[0].key), key=lambda probe: mean_loss(probe.held_out, labels))
    found = {}
    for probe in probes:
        if probe is kept or probe is best:
            continue
        name = probe_name(probe.key, probe.learning_rate)
        if not probe.held_out:
            found[name] = f"diverged within {len(probe.train)} steps"
            continue
        gap = difference(probe.held_out, best.held_out, labels)
        if gap.clear and gap.value > TIE_SHARE * mean_loss(best.held_out, labels):
            found[name] = (
                f"{gap.value:.3f} ± {gap.error:.3f} nats/token above {probe_name(best.key, best.learning_rate)} after {probe.steps} steps"
            )
    return found


@final
@dataclass(frozen=True)
class Standing:
    """How a candidate came out of a race at its best rate.

    `behind` is its loss less the best one's; `forgetting` the rise of the reference loss, nats per token; `at_edge` says that the
    best rate is an end of those that were tried, so that a better one may lie outside.
    """

    key: str
    learning_rate: float
    loss: float
    behind: Difference
    forgetting: float
    at_edge: bool

    def ties(self, best: float) -> bool:
        """Whether it is within 1 % of the best loss or two standard errors of it, whichever is more."""
        return self.behind.value <= max(TIE_SHARE * best, CLEAR * self.behind.error)


def close(behind: Difference, best: float, *, retention: bool) -> bool:
    """Whether a loss is within 1 % of the best one; with `retention` also within one standard error of it.

    References:
        The rule of one standard error: Breiman, Friedman, Olshen, Stone (1984), *Classification and Regression Trees*, 3.4.3.
    """
    return behind.value <= max(TIE_SHARE * best, behind.error if retention else 0.0)


def spares(forgetting: float, other: float) -> bool:
    """Whether `forgetting` is at most half of `other`, by an amount that is worth a change; both nats per token of general text."""
    return other - forgetting > WORTH_SPARING and forgetting <= FORGETS_LESS * other


def gentlest(
    probes: Sequence[Trial], labels: Sequence[int], base_reference: float, *, retention: bool = False
) -> Trial:
    """The lowest learning rate of those within 1 % of a candidate's best loss: a higher one that buys nothing forgets more.

    Args:
        probes: of one candidate and one length, none of them diverged; at least one.
        labels: label tokens of each held-out row.
        base_reference: the base model's loss on general text.
        retention: a lower rate within one standard error of the best loss is taken too, where it forgets at most half as much.
    """
    best = min(probes, key=lambda probe: mean_loss(probe.held_out, labels))
    level = mean_loss(best.held_out, labels)

    def tied(probe: Trial) -> bool:
        gap = difference(probe.held_out, best.held_out, labels)
        if close(gap, level, retention=False):
            return True
        assert probe.reference is not None, "what has held-out losses has a reference loss"
        assert best.reference is not None, "what has held-out losses has a reference loss"
        sparing = spares(probe.reference - base_reference, best.reference - base_reference)
        return close(gap, level, retention=retention) and sparing

    return min(filter(tied, probes), key=lambda probe: probe.learning_rate)


def standings(race: Race, *, retention: bool = False) -> tuple[Standing, ...]:
    """Every candidate that reached the last rung, the best first; each at the rate that :func:`gentlest` takes."""
    last = [probe for probe in race.probes if probe.steps == race.rungs[-1] and probe.held_out]
    if not last:
        return ()
    best = min(last, key=lambda probe: mean_loss(probe.held_out, race.labels))
    found = []
    for key in dict.fromkeys(probe.key for probe in last):
        own = [probe for probe in last if probe.key == key]
        top = gentlest(own, race.labels, race.base_reference, retention=retention)
        assert top.reference is not None, "what has held-out losses has a reference loss"
        tried = sorted(probe.learning_rate for probe in race.probes if probe.key == key)
        found.append(
            Standing(
                key=key,
                learning_rate=top.learning_rate,
                loss=mean_loss(top.held_out, race.labels),
                behind=difference(top.held_out, best.held_out, race.labels),
                forgetting=top.reference - race.base_reference,
                at_edge=len(set(tried)) > 1 and top.learning_rate in (tried[0], tried[-1]),
            )
        )
    return tuple(sorted(found, key=lambda standing: (standing.loss, standing.key)))


@final
@dataclass(frozen=True)
class Raced:
    """What a race decides: the key, its rate, whether that is an abstention, why in one sentence, and how all came out."""

    key: str
    learning_rate: float
    abstained: bool
    why: str
    standings: tuple[Standing, ...]


def decide(
    race: Race, allowed: Sequence[str], reference: str, parameters: Mapping[str, int], *, retention: bool = False
) -> Raced | None:
    """The choice; None when no probe lived.

    A candidate replaces the reference where it is clearly better (by more than 1 % of the loss and two standard errors), the one
    with the fewest parameters of those that tie at the top; or where it is within 1 % of the best loss and forgets at most
    half as much. In every other case the reference stays, at its best rate.

    Args:
        race: the probes.
        allowed: keys that pass the hard filter.
        reference: key of what is kept when nothing is better.
        parameters: trained parameters by key.
        retention: what forgets at most half as much is taken within one standard error, and not within 1 % alone.
    """
    probes = tuple(probe for probe in race.probes if probe.key in allowed)
    found = standings(dataclasses.replace(race, probes=probes), retention=retention)
    if not found:
        return None
    best = found[0]
    home = next((standing for standing in found if standing.key == reference), None)
    tied = [standing for standing in found if standing.ties(best.loss)]
    if home is None or home not in tied:
        choice = min(tied, key=lambda standing: (parameters[standing.key], standing.loss))
        behind = (
            f"{home.behind.value:.3f} ± {home.behind.error:.3f} nats/token behind it" if home else "out of the race"
        )
        more = f"; of {len(tied)} that tie it has the fewest parameters" if len(tied) > 1 else ""
        return Raced(choice.key, choice.learning_rate, False, f"{reference} is {behind}{more}", found)
    near = [standing for standing in tied if close(standing.behind, best.loss, retention=retention)]
    sparing = [standing for standing in near if spares(standing.forgetting, home.forgetting)]
    if sparing:
        choice = min(sparing, key=lambda standing: standing.forgetting)
        why = (
            f"it ties with {reference} on loss ({choice.loss:.3f} and {home.loss:.3f} nats/token) and forgets "
            f"{choice.forgetting:+.3f} against {home.forgetting:+.3f} nats/token on general text"
        )
        return Raced(choice.key, choice.learning_rate, False, why, found)
    rivals = [standing for standing in found if standing.key != reference]
    why = (
        f"nothing that raced beats {reference}: the best rival, {rivals[0].key}, is at {rivals[0].loss:.3f} against "
        f"{home.loss:.3f} nats/token, within the noise or worse"
        if rivals
        else f"only {reference} raced"
    )
    return Raced(home.key, home.learning_rate, True, why, found)
