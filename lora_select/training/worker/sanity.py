"""Whether training does anything at all, asked after the first steps and not after the last."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, final

from lora_select.training.failures import DIVERGED, NO_EFFECT, TrainingError

FIRST_STEPS = 3
WINDOW = 10
TIMES_WORSE, NATS_WORSE = 3.0, 2.0


@final
class Effect:
    """Remembers how the adapter started.

    An adapter that is the identity at its start has tensors that are zero (B of LoRA, the scalings of VeRA and the like);
    while all of them stay zero the model computes what the base does, however much the others move.
    """

    def __init__(self, start: Mapping[str, Any]) -> None:
        self._zero = [name for name, tensor in start.items() if not tensor.any()]
        self._digests = {name: _digest(tensor) for name, tensor in start.items()}

    def check(self, now: Mapping[str, Any], rate: float) -> None:
        """Look at the trained tensors after the first steps.

        Raises:
            TrainingError: nothing has changed, or all that started at zero is zero still.
        """
        if self._zero and not any(now[name].any() for name in self._zero):
            what = f"all {len(self._zero)} tensors that started at zero are zero still, so the model is the base model"
        elif all(_digest(tensor) == self._digests[name] for name, tensor in now.items()):
            what = f"none of the {len(now)} trained tensors has changed"
        else:
            return
        raise TrainingError(NO_EFFECT, f"after {FIRST_STEPS} steps {what} (the last learning rate was {rate:g})")


def refuse_divergence(losses: Sequence[float], rate: float) -> None:
    """Stop when the last losses are far above the first.

    Means over 10 steps are compared, and both a factor of 3 and 2 nats are asked for, so that neither a hard batch nor a
    rise from a very low loss stops a run.

    Raises:
        TrainingError: training diverges.

    Example:
        >>> refuse_divergence([3.0] * 10 + [5.0] * 10, 1e-3)
        >>> refuse_divergence([3.0] * 10 + [9.5] * 10, 1e-3)
        Traceback (most recent call last):
        ...
        lora_select.training.failures.TrainingError: the loss rose from 3.00 (first 10 steps) to 9.50 (last 10) at learning rate 0.001
    """
    if diverging(losses):
        first, last = _mean(losses[:WINDOW]), _mean(losses[-WINDOW:])
        message = f"the loss rose from {first:.2f} (first {WINDOW} steps) to {last:.2f} (last {WINDOW}) at learning rate {rate:g}"
        raise TrainingError(DIVERGED, message)


def diverging(losses: Sequence[float]) -> bool:
    """Whether the mean of the last steps is over 3 times, and 2 nats above, that of the first."""
    if len(losses) < 2 * WINDOW:
        return False
    first, last = _mean(losses[:WINDOW]), _mean(losses[-WINDOW:])
    return last > TIMES_WORSE * first and last > first + NATS_WORSE


def last_good_step(losses: Sequence[float]) -> int:
    """The last step (from 1) up to which the loss had not risen above its first steps' mean; 0 when there is none."""
    first = _mean(losses[:WINDOW])
    for step in range(len(losses), WINDOW - 1, -1):
        if _mean(losses[step - WINDOW : step]) <= first:
            return step
    return 0


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def _digest(tensor: Any) -> str:
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()
