"""How strongly: Morozov's discrepancy principle, at most four strengths, each evaluated once.

The strength lambda is the largest whose paired rise of loss on the selection rows, and one standard error more, is within the tolerance: rows that
cannot tell a rise of that size choose little or nothing. Scaling is searched with the same function: D / (1 + lambda) is the filter with Zt = Zr.

References:
    Morozov (1966), *On the solution of functional equations by the method of regularization*.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from lora_select.errors import InputError
from lora_select.evaluation.power import paired_error
from lora_select.records import PathPoint, Tolerance

FIRST = 0.1
LEAST, MOST = 1e-3, 100.0
STEP = 10.0
RESOLUTION = 1.8
"""The search stops when the largest strength within the tolerance and the least beyond it are within this factor."""
NEAR = 0.8
"""It stops too where a strength within the tolerance uses this share of it."""
AIM = 0.9
"""Of the tolerance: where the next strength is expected to use that much, it is looked at."""
APART = 1.2
"""Two strengths differ at least by this factor."""
EVALUATIONS = 4
DEFAULT_SHARE = 0.01


@final
@dataclass(frozen=True)
class Losses:
    """Summed loss of each selection row in nats, and its label tokens."""

    losses: tuple[float, ...]
    labels: tuple[int, ...]

    @property
    def mean(self) -> float:
        """Nats per label token."""
        return math.fsum(self.losses) / sum(self.labels)


def paired(before: Sequence[float], after: Sequence[float], labels: Sequence[int]) -> tuple[float, float]:
    """Rise of the loss in nats per label token, and its standard error with the row as the unit (0 of one row)."""
    rise = math.fsum(b - a for a, b in zip(before, after, strict=True)) / sum(labels)
    return rise, paired_error(before, after, labels) if len(labels) > 1 else 0.0


def parse_tolerance(text: str | None) -> Tolerance:
    """`1%` of the loss, `0.02` nats, or None: 1 % of the loss.

    A paired standard error is no limit: it shrinks with the rise itself, so that a small rise which all rows share is never within it.

    Raises:
        InputError: neither, or not above 0.

    Example:
        >>> parse_tolerance("2%").share, parse_tolerance("0.02").nats, parse_tolerance(None).share
        (0.02, 0.02, 0.01)
    """
    if text is None:
        return Tolerance(share=DEFAULT_SHARE, nats=None)
    number, percent = text.strip().removesuffix("%").strip(), text.strip().endswith("%")
    try:
        value = float(number) / (100 if percent else 1)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise InputError(
            f"`retention.tolerance` {text!r} must be a share of the loss, such as 1%, or nats per token, such as 0.02"
        )
    if percent:
        return Tolerance(share=value, nats=None)
    return Tolerance(share=None, nats=value)


def allowed(tolerance: Tolerance, loss: float) -> float:
    """The largest rise in nats per token: the least of what the tolerance names."""
    bounds = [None if tolerance.share is None else tolerance.share * loss, tolerance.nats]
    return min(bound for bound in bounds if bound is not None)


def morozov(raw: Losses, evaluate: Callable[[float], Sequence[float]], tolerance: Tolerance) -> tuple[PathPoint, ...]:
    """Every strength that was evaluated, in order of strength; :func:`chosen` picks from them.

    From 0.1 up or down by factors of ten until the tolerance is bracketed; then where the power law through both ends nearly uses it.

    Args:
        raw: of the adapter as it was trained.
        evaluate: summed losses of the same rows at a strength.
        tolerance: the largest rise.
    """
    points: dict[float, PathPoint] = {}

    def look(strength: float) -> bool:
        losses = evaluate(strength)
        rise, error = paired(raw.losses, losses, raw.labels)
        limit = allowed(tolerance, raw.mean)
        points[strength] = PathPoint(
            strength, math.fsum(losses) / sum(raw.labels), rise, error, limit, rise + error <= limit
        )
        return points[strength].within

    low, high = _bracket(look)
    while low is not None and high is not None and len(points) < EVALUATIONS and not _known(points[low], points[high]):
        middle = _between(points[low], points[high])
        low, high = (middle, high) if look(middle) else (low, middle)
    return tuple(points[strength] for strength in sorted(points))


def labels_wanted(points: Sequence[PathPoint], labels: int) -> int | None:
    """How many label tokens could tell that the next strength is within the tolerance; None where its rise alone is beyond it, or none is beyond.

    A standard error falls with the root of the tokens. The answer is of the least strength beyond, as the rows show it now.

    Args:
        points: a path.
        labels: tokens that chose.

    >>> points = [PathPoint(0.1, 1.0, 0.002, 0.004, 0.01, True), PathPoint(1.0, 1.0, 0.004, 0.012, 0.01, False)]
    >>> labels_wanted(points, 36), labels_wanted(points[:1], 36)
    (144, None)
    """
    beyond = next((one for one in sorted(points, key=lambda one: one.strength) if not one.within), None)
    if beyond is None or beyond.rise >= beyond.limit:
        return None
    return math.ceil(labels * (beyond.standard_error / (beyond.limit - beyond.rise)) ** 2)


def _known(low: PathPoint, high: PathPoint) -> bool:
    return high.strength / low.strength <= RESOLUTION or _used(low) >= NEAR * low.limit


def _used(point: PathPoint) -> float:
    """What is held against the limit, nats per token: the upper end of the rise."""
    return point.rise + point.standard_error


def _between(low: PathPoint, high: PathPoint) -> float:
    """Where the power law through both would use most of the tolerance; their geometric mean where the lower one uses nothing."""
    if _used(low) <= 0:
        return math.sqrt(low.strength * high.strength)
    power = math.log(_used(high) / _used(low)) / math.log(high.strength / low.strength)
    aimed = low.strength * (AIM * low.limit / _used(low)) ** (1 / power)
    return min(max(aimed, APART * low.strength), high.strength / APART)


def _bracket(look: Callable[[float], bool]) -> tuple[float | None, float | None]:
    """The largest strength within and the least beyond that are next to one another; None where a limit was reached."""
    strength = FIRST
    if look(strength):
        while strength < MOST:
            below, strength = strength, strength * STEP
            if not look(strength):
                return below, strength
        return strength, None
    while strength > LEAST:
        above, strength = strength, strength / STEP
        if look(strength):
            return strength, above
    return None, strength


def shortened(scales: Sequence[PathPoint]) -> float:
    """The scaling strength of the path at which the task's own loss is lowest, one standard error included; 0 where none lowers it by more than that.

    An update that overshoots its task (a learning rate too high) breaks general text by its size: it is made shorter before it is filtered.
    """
    best = min(scales, key=_used, default=None)
    return best.strength if best is not None and _used(best) < 0 else 0.0


def chosen(points: Sequence[PathPoint]) -> PathPoint | None:
    """The largest strength within the tolerance below which none is beyond it; None where there is none.

    Losses need not rise evenly: one that dips back under the tolerance by chance is not trusted.
    """
    best = None
    for point in sorted(points, key=lambda point: point.strength):
        if not point.within:
            break
        best = point
    return best
