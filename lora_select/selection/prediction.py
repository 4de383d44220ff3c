"""What a decision predicted and what came out: one run, and over many runs whether the stated intervals hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lora_select.evaluation.interval import student_quantile
from lora_select.records import Decision, Evaluation, Evidence, Race
from lora_select.selection.calibration import Calibration
from lora_select.selection.race import difference, mean_loss

PREDICTED_GAIN = "predicted_gain"
MINIMUM_SETTINGS = 3
"""Fewer settings say too little of the spread between settings."""


def predicted_gain(base_loss: float, constants: Calibration) -> Evidence | None:
    """What the adapter takes off the held-out loss, nats per label token: the share that LoRA took elsewhere, times the base loss.

    Its standard error is that of a new setting, sd sqrt(1 + 1/n), widened so that 1.96 of it is Student's 95 % interval with
    n - 1 degrees of freedom. None where fewer than three settings were measured.
    """
    n = constants.settings
    if n < MINIMUM_SETTINGS:
        return None
    spread = constants.gain_share_sd * math.sqrt(1 + 1 / n) * student_quantile(n - 1) / 1.96
    return Evidence(
        PREDICTED_GAIN,
        base_loss * constants.gain_share,
        base_loss * spread,
        "nats/token",
        "calibration",
    )


def raced_gain(base_loss: float, race: Race, key: str, rate: float, constants: Calibration) -> Evidence | None:
    """What the adapter takes off the held-out loss, as its probe did off that of the race's rows; None if the probe was shorter.

    The share of the base loss that the probe took, times `base_loss`. Its standard error is sqrt(2) times that of the paired difference
    of the probe's and the base's losses and the spread between seeds: other rows, of about that number, and another seed will judge.

    Args:
        base_loss: nats per label token.
        race: with the probe.
        key: the candidate's; its probe at `rate` is meant.
        rate: see `key`.
        constants: for the spread between seeds.
    """
    found = [
        p for p in race.probes if (p.key, p.learning_rate, p.steps) == (key, rate, race.planned_steps) and p.held_out
    ]
    if not found:
        return None
    labels, before = race.labels, mean_loss(race.base_held_out, race.labels)
    gain = difference(race.base_held_out, found[0].held_out, labels)
    seeds = constants.seed_sd_share * mean_loss(found[0].held_out, labels)
    error = math.sqrt(2) * math.hypot(gain.error, seeds)
    return Evidence(PREDICTED_GAIN, base_loss * gain.value / before, base_loss * error / before, "nats/token", "race")


@final
@dataclass(frozen=True)
class Outcome:
    """A prediction beside what came out, both nats per label token taken off the base loss; the interval is of 95 %."""

    predicted: float
    low: float
    high: float
    observed: float

    @property
    def inside(self) -> bool:
        """Whether the interval holds what came out."""
        return self.low <= self.observed <= self.high

    def __str__(self) -> str:
        """One sentence."""
        verdict = "inside" if self.inside else "OUTSIDE"
        return (
            f"predicted to take {self.predicted:.3f} nats/token off the held-out loss [{self.low:.3f}, {self.high:.3f}]; it took "
            f"{self.observed:.3f}, {verdict} the 95 % interval"
        )


def outcome(decision: Decision, evaluation: Evaluation) -> Outcome | None:
    """The prediction of the choice beside the evaluation; None where nothing was predicted."""
    chosen = next((item for item in decision.candidates if item.key == decision.choice_key), None)
    made = next((e for e in chosen.evidence if e.name == PREDICTED_GAIN), None) if chosen else None
    if made is None or made.standard_error is None:
        return None
    reach = 1.96 * made.standard_error
    return Outcome(made.value, made.value - reach, made.value + reach, -evaluation.metrics["loss"].difference)


def coverage(outcomes: Sequence[Outcome]) -> str:
    """How many predictions held, and how far off they were in the mean."""
    held = sum(item.inside for item in outcomes)
    bias = math.fsum(item.observed - item.predicted for item in outcomes) / len(outcomes)
    return f"{held} of {len(outcomes)} outcomes inside their 95 % interval; what came out is {bias:+.3f} nats/token off the prediction in the mean"
