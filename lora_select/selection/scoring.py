"""Candidates with their scores and with what rules them out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lora_select.records import Constraints, DatasetProfile, Spectra
from lora_select.selection.candidates import Candidate, aggregate_share
from lora_select.selection.constraints import below_floor, contradictions, violations


@final
@dataclass(frozen=True)
class Scored:
    """A candidate, its share of the signal energy with standard error, and the sentences that rule it out.

    `measured` is False for a rank the spectral pass did not measure; score 0 and error 1 then say that nothing is known.
    """

    candidate: Candidate
    score: float
    error: float
    measured: bool
    faults: tuple[str, ...]


def score_all(
    candidates: Sequence[Candidate], profile: DatasetProfile, spectra: Spectra, inputs: Constraints
) -> tuple[Scored, ...]:
    """Score every candidate. The rank floor never refuses a rank that the user named, nor the largest that passes."""
    hard = {c.key: (*contradictions(c, inputs), *violations(c, inputs)) for c in candidates}
    largest: dict[tuple[str, str], int] = {}
    for c in candidates:
        if not hard[c.key]:
            group = (c.variant.name, c.targets)
            largest[group] = max(c.variant.r, largest.get(group, 0))
    scored = []
    for c in candidates:
        floored = inputs.r is None and c.variant.r < largest.get((c.variant.name, c.targets), 0)
        faults = (*hard[c.key], *(below_floor(c, profile) if floored else ()))
        share = aggregate_share(c, spectra.layers)
        score, error = share or (0.0, 1.0)
        scored.append(Scored(c, score, error, share is not None, faults))
    return tuple(scored)
