"""The decision: a pure function from profile, spectra and constraints, in milliseconds. The rule is in :func:`select`."""

import math
from collections.abc import Sequence

from lora_select import records
from lora_select.errors import InputError
from lora_select.records import CandidateScore, Constraints, DatasetProfile, Decision, Race, Spectra
from lora_select.selection.candidates import ALL_LINEAR, MLP_ONLY, TARGETS, enumerate_candidates
from lora_select.selection.constraints import check_names, claims_in_force, contradictions, with_experts
from lora_select.selection.explanation import passed_over, reasons
from lora_select.selection.findings import Verdict, evidence, spec, spec_of
from lora_select.selection.learning_rate import REFERENCE_RANK
from lora_select.selection.race import MOST_ENTRANTS, Raced, RacePlan, decide, plan_race
from lora_select.selection.scoring import Scored, score_all
from lora_select.variants import EVA, VARIANTS, LoRA

RULE = "filter, measure, race, tie, cheapest, abstain"
RULE_VERSION = "8"
SHORT_RUN_STEPS = 100
"""Tangent energy tells early speed, not the final loss: the claim is heard up to this many steps."""
SHARE_FACTOR = 2.0
"""A variant's share must beat LoRA's by this factor, beyond two standard errors of both."""


def select(profile: DatasetProfile, spectra: Spectra, inputs: Constraints, race: Race | None = None) -> Decision:
    """Choose variant, targets, rank, alpha and learning rate.

    1. Candidates: every variant x targets x rank; what the user named narrows them.
    2. Hard filter: serving, merging, quantised or protected base, ZeRO-3, parameters; the capacity floor of the rank.
    3. Score: share of the signal energy in the tangent space at the start, with its standard error.
    4. While the claim that this share predicts short runs is off, the score moves nothing: all candidates are tied, and
       the rule abstains to all-linear LoRA, r 16, at the rate of so many steps. With it on, and at most 100 steps planned, a variant whose
       lower bound (-2 SE) is above twice LoRA's upper bound (+2 SE), at the reference targets and rank, is taken; the
       cheapest of those within 2 SE of the best.
    5. A race, where one was run, overrules that: see :func:`lora_select.selection.race.decide`.

    Raises:
        InputError: an unknown name, or no candidate is left; says which constraints stand against each other.
    """
    scored, allowed, reference, claim = _open(profile, spectra, inputs)
    heard = claim and inputs.variant is None and inputs.planned_steps <= SHORT_RUN_STEPS
    winners = _winners(_clear(allowed, scored, reference)) if heard else ()
    choice = min(winners, key=_cost) if winners else reference
    raced = _raced(race, allowed, reference, inputs)
    if raced is not None:
        choice = next(item for item in allowed if item.candidate.key == raced.key)
    verdict = Verdict(
        choice=choice,
        scored=scored,
        winners=() if raced else winners,
        raced=raced,
        race=race,
        abstained=inputs.variant is None and (raced.abstained if raced else not winners),
        claim=claim,
        heard=heard,
        short_run_steps=SHORT_RUN_STEPS,
        share_factor=SHARE_FACTOR,
    )
    return Decision(
        rule=RULE,
        rule_version=RULE_VERSION,
        profile_digest=records.digest(profile),
        spectra_digest=records.digest(spectra),
        inputs=inputs,
        choice=spec_of(choice.candidate, verdict, inputs),
        choice_key=choice.candidate.key,
        abstained=verdict.abstained,
        reasons=reasons(verdict, profile, spectra, inputs),
        candidates=tuple(_record(item, verdict, profile, inputs) for item in scored),
        race_digest=records.digest(race) if race else None,
    )


def _record(item: Scored, verdict: Verdict, profile: DatasetProfile, inputs: Constraints) -> CandidateScore:
    """A candidate with its evidence; `rejected` is empty for the choice alone."""
    return CandidateScore(
        key=item.candidate.key,
        spec=spec_of(item.candidate, verdict, inputs),
        evidence=evidence(item, verdict, profile),
        score=item.score,
        score_se=item.error,
        rejected=item.faults or passed_over(item, verdict),
    )


def prepare_race(profile: DatasetProfile, spectra: Spectra, inputs: Constraints) -> RacePlan:
    """Who may race: the reference, EVA where its tangent share clears twice LoRA's, LoRA on feed-forward layers, the largest shares.

    In this order. EVA comes before larger shares because the oracle has it on most settings, and not behind LoRA (docs/theory.md).

    Raises:
        InputError: as :func:`select`, or the budget pays for no race.
    """
    scored, allowed, reference, _ = _open(profile, spectra, inputs)
    place = (reference.candidate.targets, reference.candidate.variant.r)
    here = [i for i in allowed if (i.candidate.targets, i.candidate.variant.r) == place and i.measured]
    by_share = sorted(here, key=lambda item: (-item.score, _distance(item)))
    sparing = [
        item
        for item in allowed
        if item.candidate.targets == MLP_ONLY
        and reference.candidate.targets == ALL_LINEAR
        and (item.candidate.variant.name, item.candidate.variant.r) == (reference.candidate.variant.name, place[1])
    ]
    first = [item for item in _clear(allowed, scored, reference) if item.candidate.variant.name == EVA.name]
    order = {item.candidate.key: item.candidate for item in (reference, *first, *sparing, *by_share)}
    specs = {key: spec(order[key], inputs) for key in list(order)[:MOST_ENTRANTS]}
    return plan_race(specs, inputs.planned_steps, inputs.race_budget, fixed_rate=inputs.learning_rate is not None)


def _open(
    profile: DatasetProfile, spectra: Spectra, inputs: Constraints
) -> tuple[tuple[Scored, ...], list[Scored], Scored, bool]:
    """All candidates with their scores, those that are allowed, the reference among them, and whether the claim is on."""
    check_names(inputs)
    claim = claims_in_force(inputs)["tangent_share_predicts_short_runs"]
    candidates = with_experts(enumerate_candidates(spectra, inputs.r, inputs.variant), spectra, inputs)
    scored = score_all(candidates, profile, spectra, inputs)
    allowed = [item for item in scored if not item.faults]
    if not allowed:
        raise InputError(_nothing_left(scored, inputs))
    return scored, allowed, min(allowed, key=_distance), claim


def _raced(race: Race | None, allowed: Sequence[Scored], reference: Scored, inputs: Constraints) -> Raced | None:
    if race is None:
        return None
    parameters = {item.candidate.key: item.candidate.num_parameters for item in allowed}
    retention = inputs.prefer_retention
    return decide(race, list(parameters), reference.candidate.key, parameters, retention=retention)


def _distance(item: Scored) -> tuple[int, int, float, int]:
    """From all-linear LoRA at the reference rank: variant, targets, rank; of two ranks as near the larger one."""
    candidate = item.candidate
    order = [variant.name for variant in VARIANTS].index(candidate.variant.name)
    r = candidate.variant.r
    return order, TARGETS.index(candidate.targets), abs(math.log(r / REFERENCE_RANK)) if r else 0.0, -r


def _cost(item: Scored) -> tuple[int, tuple[int, int, float, int]]:
    return item.candidate.num_parameters, _distance(item)


def _clear(allowed: Sequence[Scored], scored: Sequence[Scored], reference: Scored) -> list[Scored]:
    """Variants whose share clears twice LoRA's, beyond two standard errors of both, at the reference's targets and rank."""
    place = (reference.candidate.targets, reference.candidate.variant.r)
    here = [item for item in scored if (item.candidate.targets, item.candidate.variant.r) == place and item.measured]
    plain = next((item for item in here if item.candidate.variant.name == LoRA.name), None)
    if plain is None:
        return []
    bar = SHARE_FACTOR * (plain.score + 2 * plain.error)
    return [item for item in here if item in allowed and item.score - 2 * item.error > bar]


def _winners(clear: Sequence[Scored]) -> tuple[Scored, ...]:
    """Those that tie with the best of what clears LoRA's share."""
    if not clear:
        return ()
    best = max(clear, key=lambda item: item.score)
    return tuple(item for item in clear if best.score - item.score <= 2 * math.hypot(best.error, item.error))


def _nothing_left(scored: Sequence[Scored], inputs: Constraints) -> str:
    """Which constraints exclude everything that the user named."""
    named = [item for item in scored if not contradictions(item.candidate, inputs)]
    if not named:
        return (
            f"no candidate has targets {inputs.targets!r}: the model's linear layers "
            f"({', '.join(scored[0].candidate.target_modules)}) do not split into feed-forward and others; "
            "use targets all-linear"
        )
    faults = dict.fromkeys(fault for item in named for fault in item.faults)
    return "no adapter meets every constraint of `selection`; loosen one of these:\n" + "\n".join(faults)
