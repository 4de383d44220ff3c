"""What the rule found, and the records that it becomes: the adapter of each candidate, and the evidence for and against it."""

import dataclasses
from dataclasses import dataclass
from typing import final

from lora_select.records import AdapterSpec, Constraints, DatasetProfile, Evidence, Race
from lora_select.selection.calibration import rate_shift, shipped
from lora_select.selection.candidates import Candidate
from lora_select.selection.constraints import rank_floor
from lora_select.selection.learning_rate import displacement_ratio, learning_rate
from lora_select.selection.placement import target_modules, target_parameters
from lora_select.selection.prediction import predicted_gain, raced_gain
from lora_select.selection.race import Raced
from lora_select.selection.scoring import Scored


@final
@dataclass(frozen=True)
class Verdict:
    """What the rule found: the choice, all candidates, those that cleared LoRA, and whether the claim was heard."""

    choice: Scored
    scored: tuple[Scored, ...]
    winners: tuple[Scored, ...]
    abstained: bool
    claim: bool
    heard: bool
    short_run_steps: int
    share_factor: float
    raced: Raced | None = None
    race: Race | None = None


def spec(candidate: Candidate, inputs: Constraints) -> AdapterSpec:
    """What the worker builds."""
    names = [layer.name for layer in candidate.layers]
    placed = {"target_modules": target_modules(names, candidate.others), "task_type": "CAUSAL_LM"}
    if candidate.experts:
        placed["target_parameters"] = target_parameters(candidate.experts)
    return candidate.variant.spec(
        targets=candidate.targets,
        target_modules=candidate.target_modules,
        learning_rate=inputs.learning_rate or learning_rate(candidate, inputs.planned_steps),
        num_parameters=candidate.num_parameters,
        placed=placed,
    )


def spec_of(candidate: Candidate, verdict: Verdict, inputs: Constraints) -> AdapterSpec:
    """The adapter at the learning rate that won the race, moved from the rung's length to the full one; at the predicted one without."""
    predicted = spec(candidate, inputs)
    own = next((s for s in verdict.raced.standings if s.key == candidate.key), None) if verdict.raced else None
    if own is None or inputs.learning_rate is not None:
        return predicted
    return dataclasses.replace(predicted, learning_rate=float(f"{own.learning_rate * shift(verdict):.1e}"))


def shift(verdict: Verdict) -> float:
    """From the last rung's length to the full one: a factor on the learning rate."""
    race = verdict.race
    return rate_shift(race.rungs[-1] / race.planned_steps, shipped()) if race else 1.0


def evidence(item: Scored, verdict: Verdict, profile: DatasetProfile) -> tuple[Evidence, ...]:
    """What was measured of a candidate; the predicted gain for the choice alone, since nothing in force tells the candidates apart."""
    predicted = gain(verdict, profile) if item is verdict.choice else None
    return (*_measured(item, profile), *_raced(item, verdict), *((predicted,) if predicted else ()))


def gain(verdict: Verdict, profile: DatasetProfile) -> Evidence | None:
    """As the choice's own probe has it, if that was as long as the training; else as other settings came out."""
    raced, race = verdict.raced, verdict.race
    own = raced_gain(profile.base_loss, race, raced.key, raced.learning_rate, shipped()) if raced and race else None
    return own or predicted_gain(profile.base_loss, shipped())


def _measured(item: Scored, profile: DatasetProfile) -> tuple[Evidence, ...]:
    """By the spectral pass and the profile."""
    candidate = item.candidate
    share = (
        [Evidence("tangent_share", item.score, item.error, "share of signal energy", "analyze")]
        if item.measured
        else []
    )
    capacity = candidate.capacity_bits / profile.information_bits if profile.information_bits > 0 else 0.0
    return (
        *share,
        Evidence("displacement_ratio", displacement_ratio(candidate), None, "of LoRA at the same rank", "analyze"),
        Evidence("num_parameters", float(candidate.num_parameters), None, "parameters", "select"),
        Evidence("capacity_ratio", capacity, None, "adapter bits per bit of labels", "profile"),
        Evidence("rank_floor", rank_floor(candidate, profile), None, "rank", "profile"),
    )


def _raced(item: Scored, verdict: Verdict) -> tuple[Evidence, ...]:
    """What the race measured at the candidate's best rate, at the length of the last rung."""
    found = [s for s in verdict.raced.standings if s.key == item.candidate.key] if verdict.raced else []
    return tuple(
        one
        for standing in found
        for one in (
            Evidence("race_rate", standing.learning_rate, None, "learning rate", "race"),
            Evidence("race_loss", standing.loss, None, "nats/token", "race"),
            Evidence("race_behind", standing.behind.value, standing.behind.error, "nats/token behind the best", "race"),
            Evidence("race_forgetting", standing.forgetting, None, "nats/token of general text", "race"),
        )
    )
