"""How strongly: Morozov's discrepancy principle, at most four strengths, each evaluated once.

The strength lambda is the largest whose rise of loss on the selection rows, and one standard error more, is within the tolerance. The rise is taken
from what the rows show and from what the adapter as trained expects (:func:`combined`): few label tokens show little, and there the expectation
counts. Scaling is searched with the same function: D / (1 + lambda) is the filter with Zt = Zr.

References:
    Morozov (1966), *On the solution of functional equations by the method of regularization*.
    Casella, Robert (1996), *Rao-Blackwellisation of sampling schemes*: the mean over labels in place of the labels that came.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
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
TRUST = 2.0
"""Standard deviations by which the rows may show more than is expected."""
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


@final
@dataclass(frozen=True)
class Seen:
    """The selection rows at one strength: summed loss of each row in nats, and the mean KL(as trained || at this strength) over label tokens."""

    losses: Sequence[float]
    expected: float | None = None


def combined(rise: float, error: float, expected: float | None) -> tuple[float, float]:
    """The rise of the loss, nats per label token, and its standard deviation: of what rows show and what the adapter as trained expects together.

    Were the adapter as trained right about its own errors, the loss would rise by K = KL(as trained || filtered) in the mean over labels. K has no noise of
    labels. The truth may be nothing or twice that: the rise is N(K, K^2) before the rows are looked at, and they show it with a normal error.
    Where they show that it is more (:func:`contradicted`), they count alone.

    Args:
        rise: the paired rise on the rows.
        error: its standard error.
        expected: K, or None where it is not known, which leaves the other two as they are.

    >>> [round(value, 4) for value in combined(0.012, 0.02, 0.004)]
    [0.0043, 0.0039]
    >>> combined(0.012, 0.02, None), combined(0.0, 0.0, 0.0)
    ((0.012, 0.02), (0.0, 0.0))
    """
    if expected is None or error == 0:
        return rise, error
    if expected <= 0:
        return 0.0, 0.0
    trust = error**2 / (error**2 + expected**2)  # in the expectation
    return trust * expected + (1 - trust) * rise, error * expected / math.hypot(error, expected)


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


def morozov(
    raw: Losses, evaluate: Callable[[float], Seen], tolerance: Tolerance, *, believed: bool = True
) -> tuple[PathPoint, ...]:
    """Every strength that was evaluated, in order of strength; :func:`chosen` picks from them.

    From 0.1 up or down by factors of ten until the tolerance is bracketed; then where the power law through both ends nearly uses it. Where a
    strength shows that the expectation is too low, the search is made again by the rows alone, of what was evaluated already.

    Args:
        raw: of the adapter as it was trained.
        evaluate: the same rows at a strength.
        tolerance: the largest rise.
        believed: whether the expectation counts.
    """
    found: dict[float, Seen] = {}
    limit = allowed(tolerance, raw.mean)

    def points() -> tuple[PathPoint, ...]:
        return tuple(point(strength, raw, found[strength], limit, believed=believed) for strength in sorted(found))

    def look(strength: float) -> PathPoint:
        if strength not in found:
            found[strength] = evaluate(strength)
        return point(strength, raw, found[strength], limit, believed=believed)

    _search(look)
    if believed and contradicted(points()):
        believed = False
        _search(look)
    return points()


def _search(look: Callable[[float], PathPoint]) -> None:
    looked: list[PathPoint] = []

    def at(strength: float) -> PathPoint:
        looked.append(look(strength))
        return looked[-1]

    low, high = _bracket(at)
    while low is not None and high is not None and len(looked) < EVALUATIONS and not _known(low, high):
        middle = at(_between(low, high))
        low, high = (middle, high) if middle.within else (low, middle)


def alone(points: Iterable[PathPoint]) -> tuple[PathPoint, ...]:
    """The same strengths by what the rows show."""
    return tuple(
        replace(one, rise=one.seen[0], standard_error=one.seen[1], within=math.fsum(one.seen) <= one.limit)
        for one in points
        if one.seen is not None
    )


def contradicted(points: Iterable[PathPoint]) -> bool:
    """Whether at some strength the loss rises by more than is expected, beyond two standard deviations of both together.

    An adapter that was trained too little does not expect what the next steps would have taught it.
    """
    return any(
        one.seen is not None
        and one.expected is not None
        and one.seen[0] - one.expected > TRUST * math.hypot(one.seen[1], one.expected)
        for one in points
    )


def point(strength: float, raw: Losses, found: Seen, limit: float, *, believed: bool = True) -> PathPoint:
    """A strength held against the largest rise that is allowed."""
    shown = paired(raw.losses, found.losses, raw.labels)
    rise, error = combined(*shown, found.expected) if believed else shown
    loss = math.fsum(found.losses) / sum(raw.labels)
    return PathPoint(strength, loss, rise, error, limit, rise + error <= limit, shown, found.expected)


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


def _bracket(look: Callable[[float], PathPoint]) -> tuple[PathPoint | None, PathPoint | None]:
    """The largest strength within and the least beyond that are next to one another; None where a limit was reached."""
    here = look(FIRST)
    if here.within:
        while here.strength < MOST:
            below, here = here, look(here.strength * STEP)
            if not here.within:
                return below, here
        return here, None
    while here.strength > LEAST:
        above, here = here, look(here.strength / STEP)
        if here.within:
            return here, above
    return None, here


def shortened(scales: Sequence[PathPoint]) -> float:
    """The scaling strength of the path at which the task's own loss is lowest on the rows, one standard error included; 0 where none lowers it by more than that.

    An update that overshoots its task (a learning rate too high) breaks general text by its size: it is made shorter before it is filtered.
    """

    def shown(point: PathPoint) -> float:
        return math.fsum(point.seen or (point.rise, point.standard_error))

    best = min(scales, key=shown, default=None)
    return best.strength if best is not None and shown(best) < 0 else 0.0


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
