"""What was predicted before a training and a quarter into it, and what came out: one run, and over many runs whether the intervals hold."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lora_select.evaluation.interval import student_quantile
from lora_select.records import Adapter, Decision, Evaluation, Evidence, Race
from lora_select.selection.calibration import QUARTER, Calibration
from lora_select.selection.race import difference, mean_loss

PREDICTED_GAIN = "predicted_gain"
FORECAST = "forecast"
MINIMUM_SETTINGS = 3
"""Fewer settings say too little of the spread between settings."""
WIDEST = 0.3
"""Of the base loss: a prediction whose 95 % interval reaches farther to either side says nothing and is not made."""


def predicted_gain(base_loss: float, constants: Calibration) -> Evidence | None:
    """What the adapter takes off the held-out loss, nats per label token: the share that LoRA took elsewhere, times the base loss.

    Its standard error is that of a new setting, sd sqrt(1 + 1/n), widened so that 1.96 of it is Student's 95 % interval with
    n - 1 degrees of freedom. None where fewer than three settings were measured, or where that interval is too wide to say anything.
    """
    if constants.settings < MINIMUM_SETTINGS:
        return None
    error = spread(constants.gain_share_sd, constants.settings)
    return _useful(
        Evidence(PREDICTED_GAIN, base_loss * constants.gain_share, base_loss * error, "nats/token", "calibration"),
        base_loss,
    )


def forecast(base_loss: float, losses: Sequence[float], steps: int, constants: Calibration) -> Evidence | None:
    """What the adapter will have taken off the held-out loss at the end, told by the first quarter of the steps; nats per label token.

    None before that, where the training's length or its curve is unlike all that the constants are from, and where they are from none.

    Args:
        base_loss: nats per label token of the held-out rows.
        losses: of the steps so far, nats per label token of the rows of each.
        steps: planned.
        constants: their `curve` is read.
    """
    curve, end = constants.curve, quarter(steps)
    if curve is None or len(losses) < end or not curve.steps[0] <= steps <= curve.steps[1]:
        return None
    lost = lost_so_far(base_loss, losses, steps)
    if not curve.lost[0] <= lost <= curve.lost[1]:
        return None
    made = Evidence(
        FORECAST,
        base_loss * (curve.start + curve.slope * lost),
        base_loss * spread(curve.sd, curve.settings),
        "nats/token",
        f"step {end} of {steps}",
    )
    return _useful(made, base_loss)


def forecast_sentence(made: Evidence, base_loss: float) -> str:
    """What a person reads of a forecast while the training goes on."""
    reach = 1.96 * (made.standard_error or 0.0)
    low, high = max(0.0, base_loss - made.value - reach), base_loss - made.value + reach
    return (
        f"at {made.source} the held-out loss is on its way from {base_loss:.2f} to about {max(0.0, base_loss - made.value):.2f} nats a token "
        f"(95 %: {low:.2f} to {high:.2f})"
    )


def quarter(steps: int, share: float = QUARTER) -> int:
    """The step after which :func:`forecast` speaks; at another `share` of the steps for who judges that choice.

    >>> quarter(24), quarter(30), quarter(3)
    (6, 8, 2)
    """
    return max(2, round(share * steps))


def lost_so_far(base_loss: float, losses: Sequence[float], steps: int, share: float = QUARTER) -> float:
    """Share of the base loss that the steps before the quarter have lost: the mean of the last third of them, two at least."""
    end = quarter(steps, share)
    seen = losses[max(0, end - max(2, end // 3)) : end]
    return 1 - math.fsum(seen) / len(seen) / base_loss


def spread(sd: float, settings: int) -> float:
    """Standard error of a new setting's value, such that 1.96 of it is Student's 95 % interval."""
    return sd * math.sqrt(1 + 1 / settings) * student_quantile(settings - 1) / 1.96


def _useful(made: Evidence, base_loss: float) -> Evidence | None:
    """None where the 95 % interval is wider than :data:`WIDEST` to either side."""
    return made if 1.96 * (made.standard_error or 0.0) <= WIDEST * base_loss else None


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
    share = Evidence(PREDICTED_GAIN, base_loss * gain.value / before, base_loss * error / before, "nats/token", "race")
    return _useful(share, base_loss)


@final
@dataclass(frozen=True)
class Outcome:
    """A prediction beside what came out, both nats per label token taken off the base loss; the interval is of 95 %.

    `when` is empty for what was predicted before the training, else the step of the forecast.
    """

    predicted: float
    low: float
    high: float
    observed: float
    when: str = ""

    @property
    def inside(self) -> bool:
        """Whether the interval holds what came out."""
        return self.low <= self.observed <= self.high

    def __str__(self) -> str:
        """One sentence."""
        verdict = "inside" if self.inside else "OUTSIDE"
        when = f"at {self.when} it was " if self.when else ""
        return (
            f"{when}predicted to take {self.predicted:.3f} nats/token off the held-out loss [{self.low:.3f}, {self.high:.3f}]; it took "
            f"{self.observed:.3f}, {verdict} the 95 % interval"
        )


def outcome(decision: Decision, evaluation: Evaluation, adapter: Adapter | None = None) -> Outcome | None:
    """What was predicted of the choice beside the evaluation: before the training, else by its first quarter; None where nothing was."""
    chosen = next((item for item in decision.candidates if item.key == decision.choice_key), None)
    made = next((e for e in chosen.evidence if e.name == PREDICTED_GAIN), None) if chosen else None
    made = made or (adapter.forecast if adapter else None)
    if made is None or made.standard_error is None:
        return None
    reach = 1.96 * made.standard_error
    when = made.source if made.name == FORECAST else ""
    return Outcome(made.value, made.value - reach, made.value + reach, -evaluation.metrics["loss"].difference, when)


def coverage(outcomes: Sequence[Outcome]) -> str:
    """How many predictions held, and how far off they were in the mean."""
    held = sum(item.inside for item in outcomes)
    bias = math.fsum(item.observed - item.predicted for item in outcomes) / len(outcomes)
    return f"{held} of {len(outcomes)} outcomes inside their 95 % interval; what came out is {bias:+.3f} nats/token off the prediction in the mean"
