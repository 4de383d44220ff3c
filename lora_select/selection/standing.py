"""From a race to a choice: the best of a tie, or plain LoRA at the rate that won."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import final

from lora_select.records import Race
from lora_select.selection.race import Standing, close, spares, standings


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
