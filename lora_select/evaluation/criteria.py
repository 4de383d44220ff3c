"""The questions of the gate, each a pure function from one comparison to a :class:`Criterion` with its numbers in words."""

import math

from lora_select.evaluation.interval import FEW_ROWS
from lora_select.evaluation.policy import LEVEL, quantile
from lora_select.evaluation.power import p_value, rows_needed, standard_error
from lora_select.evaluation.wording import SHARE_UNIT
from lora_select.evaluation.wording import metric as title
from lora_select.records import Criterion, MetricComparison

PASSED, FAILED, UNDECIDED = "passed", "failed", "undecided"
SHOWN_BY_NONE = 4
"""From so many rows on, none right shows a rate below a half: the upper end of Wilson's 95 % interval."""


def harm(pair: MetricComparison) -> tuple[float, tuple[float, float]]:
    """The difference and its interval with the sign turned so that positive is worse."""
    low, high = pair.interval
    return (pair.difference, (low, high)) if pair.better == "lower" else (-pair.difference, (-high, -low))


def seed_error(pair: MetricComparison, seed_noise: float) -> float:
    """Standard deviation of the difference of two seeds: `seed_noise` standard deviations of one row's difference.

    Rows do not shrink it. Two seeds that disagree more on single rows also differ more in the mean: over 24 settings the ratio
    of the two spans a factor of 20, where seeds over the loss span one of 100 (`benchmarks/results/promotion.json`).
    """
    return seed_noise * standard_error(pair) * math.sqrt(pair.rows)


def improvement(metric: str, rival: str, pair: MetricComparison, *, seed_noise: float = 0.0) -> Criterion:
    """Superiority: the interval, widened by what two seeds differ, must lie wholly on the better side of 0."""
    change, (low, high) = harm(pair)
    error, seeds = standard_error(pair), seed_error(pair, seed_noise)
    reach = math.hypot(high - change, quantile((1 + LEVEL) / 2) * seeds)
    upper, lower = change + reach, change - math.hypot(change - low, quantile((1 + LEVEL) / 2) * seeds)
    value = p_value(change, math.hypot(error, seeds))
    name = f"{title(metric)} does not beat {rival}'s"
    if upper < 0:
        return _made("superiority", metric, rival, pair, 0.0, value, PASSED, None, f"{title(metric)} beats {rival}'s")
    needed = rows_needed(-change, error, pair.rows, floor=seeds)
    if lower > 0 or change >= 0:
        return _made("superiority", metric, rival, pair, 0.0, value, FAILED, None, name)
    if high < 0:
        name += f" by more than two seeds of one setting differ ({seeds:.3f}, `promotion.seed_noise` {seed_noise:.2g} of a row's standard deviation)"
    else:
        name += " beyond its noise"
    return _made("superiority", metric, rival, pair, 0.0, value, UNDECIDED, needed, name)


def non_inferiority(metric: str, rival: str, pair: MetricComparison, margin: float) -> Criterion:
    """Shown to be no worse than `margin`: the worse end of the interval lies within it."""
    change, (low, high) = _bounds(pair)
    error = standard_error(pair)
    value = p_value(change, error, margin)
    if high < margin or (high == margin == 0.0):
        words = f"{title(metric)} is at most {margin:g} worse than {rival}'s"
        return _made("non-inferiority", metric, rival, pair, margin, value, PASSED, None, words)
    if low > margin or change > margin:
        words = f"{title(metric)} is more than {margin:g} worse than {rival}'s"
        return _made("non-inferiority", metric, rival, pair, margin, value, FAILED, None, words)
    needed = rows_needed(margin - change, max(error, (high - low) / 2 / quantile((1 + LEVEL) / 2)), pair.rows)
    words = f"{title(metric)} is not shown to be at most {margin:g} worse than {rival}'s (`promotion.margins`)"
    return _made("non-inferiority", metric, rival, pair, margin, value, UNDECIDED, needed, words)


def forgetting(reference: str, pair: MetricComparison, limit: float) -> Criterion:
    """Loss on a reference set: the upper end of the interval must lie within the limit."""
    high = pair.interval[1]
    value = p_value(pair.difference, standard_error(pair), limit)
    words = f"loss on {reference} rose"
    if high <= limit:
        return _made(
            "limit", reference, "the base model", pair, limit, value, PASSED, None, f"{words} within {limit:g}"
        )
    over = f"{words} over the limit of {limit:g} (`promotion.max_forgetting`)"
    if pair.difference > limit:
        return _made("limit", reference, "the base model", pair, limit, value, FAILED, None, over)
    needed = rows_needed(limit - pair.difference, standard_error(pair), pair.rows)
    words = f"{words}, and is not shown to stay within {limit:g} (`promotion.max_forgetting`)"
    return _made("limit", reference, "the base model", pair, limit, value, UNDECIDED, needed, words)


def no_proven_harm(metric: str, rival: str, pair: MetricComparison, adjusted: float, *, family: int) -> Criterion:
    """A veto where harm is proven at 2.5 % over the whole family (Holm), such as exact match that fell."""
    failed = adjusted < (1 - LEVEL) / 2
    of = f" (Holm over {family} tests: p {adjusted:.2g})" if family > 1 else ""
    words = f"{title(metric)} {'fell' if pair.better == 'higher' else 'rose'} against {rival}{of}"
    fine = f"{title(metric)} is not proven worse than {rival}'s"
    outcome = FAILED if failed else PASSED
    return _made("no proven harm", metric, rival, pair, 0.0, adjusted, outcome, None, words if failed else fine)


def harm_p_value(pair: MetricComparison) -> float:
    """One-sided: how likely a difference as bad as this is where there is no true one."""
    change, _ = harm(pair)
    return p_value(-change, standard_error(pair))


def floor(metric: str, pair: MetricComparison, least: float) -> Criterion:
    """The adapter's own value must reach what the user asks for."""
    missed = pair.adapted < least if pair.better == "higher" else pair.adapted > least
    side = "at least" if pair.better == "higher" else "at most"
    words = f"{title(metric)} is {pair.adapted:.3f} {pair.unit}, {'not ' if missed else ''}{side} {least:g} (`promotion.floors`)"
    return Criterion(
        "floor", metric, None, pair.adapted, least, share_interval(pair), None, pair.rows, None, _outcome(missed), words
    )


def some_right(metric: str, pair: MetricComparison) -> Criterion:
    """Where answers can be checked, none right means that the task was not learnt, whatever the loss says.

    None of three says too little: an adapter that is right half of the time comes out so in one run of eight.
    """
    missed = pair.adapted <= 0 and pair.rows >= SHOWN_BY_NONE
    words = f"{title(metric)} is 0 on all {pair.rows} rows" if missed else f"{title(metric)} is {pair.adapted:.3f}"
    if missed:
        words += f"; to promote such an adapter all the same set `promotion.floors: {{{metric}: 0}}`"
    return Criterion(
        "floor", metric, None, pair.adapted, 0.0, share_interval(pair), None, pair.rows, None, _outcome(missed), words
    )


def enough_rows(metric: str, pair: MetricComparison) -> Criterion:
    """A bootstrap over a handful of rows promises more than it keeps."""
    few = pair.rows < FEW_ROWS
    words = (
        f"only {pair.rows} held-out rows: a 95 % interval over fewer than {FEW_ROWS} promises more than it keeps; "
        "raise `dataset.eval_fraction`"
        if few
        else f"{pair.rows} held-out rows"
    )
    outcome, needed = (UNDECIDED, FEW_ROWS) if few else (PASSED, None)
    return Criterion(
        "rows", metric, None, float(pair.rows), float(FEW_ROWS), None, None, pair.rows, needed, outcome, words
    )


def missing(what: str, rival: str | None, reason: str) -> Criterion:
    """A question that the evaluation has no numbers for, which is never an approval."""
    return Criterion("comparison", what, rival, None, None, None, None, 0, None, FAILED, reason)


def share_interval(pair: MetricComparison) -> tuple[float, float] | None:
    """Wilson's 95 % interval of the adapter's own value; None for what is no share of rows."""
    if pair.unit != SHARE_UNIT or pair.rows == 0:
        return None
    z, n, p = quantile((1 + LEVEL) / 2), pair.rows, pair.adapted
    middle, spread = (p + z * z / (2 * n)) / (1 + z * z / n), math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    half = z * spread / (1 + z * z / n)
    return max(0.0, middle - half), min(1.0, middle + half)


def numbers(pair: MetricComparison) -> str:
    """Both values, the change and its interval.

    >>> numbers(MetricComparison(2.0, 1.5, -0.5, (-0.6, -0.4), 50, "nats/token", "lower", True))
    '2.000 -> 1.500 nats/token, change -0.500 [-0.600, -0.400]'
    """
    return (
        f"{pair.base:.3f} -> {pair.adapted:.3f} {pair.unit}, change {pair.difference:+.3f} "
        f"[{pair.interval[0]:+.3f}, {pair.interval[1]:+.3f}]"
    )


def _bounds(pair: MetricComparison) -> tuple[float, tuple[float, float]]:
    """As :func:`harm`; for shares also no shorter than Agresti and Min's interval, which equal answers do not shrink to nothing.

    Two right and two wrong rows are added, one for each way a pair can come out: Statistics in Medicine 24 (2005), equation 5.
    """
    change, (low, high) = harm(pair)
    if pair.unit != SHARE_UNIT:
        return change, (low, high)
    n = pair.rows
    squares = standard_error(pair) ** 2 * n * (n - 1) + n * change**2
    middle, more = change * n / (n + 2), n + 2
    half = quantile((1 + LEVEL) / 2) * math.sqrt(max(0.0, squares + 1 - more * middle**2)) / more
    return change, (min(low, middle - half), max(high, middle + half))


def _made(
    test: str,
    metric: str,
    rival: str,
    pair: MetricComparison,
    margin: float,
    value: float,
    outcome: str,
    needed: int | None,
    words: str,
) -> Criterion:
    reason = f"{words}: {numbers(pair)}"
    if outcome == UNDECIDED:
        reason += f"; {_more(pair, needed)}"
    return Criterion(
        test, metric, rival, pair.difference, margin, pair.interval, value, pair.rows, needed, outcome, reason
    )


def _more(pair: MetricComparison, needed: int | None) -> str:
    if needed is None:
        return "more rows are not expected to tell"
    return f"needs about {needed - pair.rows} more rows to tell ({needed} in all)"


def _outcome(missed: bool) -> str:
    return FAILED if missed else PASSED
