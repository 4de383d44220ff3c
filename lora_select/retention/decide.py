"""The decision: `none`, `scale` or `filter`, a pure function of recorded evidence."""

import math
from collections.abc import Mapping

from lora_select.records import PathPoint, Retention, RetentionDecision, RetentionEvidence, UnitLosses
from lora_select.retention.path import chosen, paired

RAW, SCALE, FILTER = "raw", "scale", "filter"
NOTHING = 0.01
"""Nats per token of general text below which there is nothing worth keeping."""


def decide(evidence: RetentionEvidence) -> RetentionDecision:
    """What is served, and why.

    1. Where the adapter as trained raises the loss on no reference text by more than 0.01 nats a token and two standard errors, and no earlier
       task is to be kept: none.
    2. Of scaling and filtering, each at its own strength, the one whose general loss is lower by more than one paired standard error.
       Where they cannot be told apart, scaling, because it changes less; with earlier tasks, the one that moves their layers' outputs less.
    3. None where the better of the two does not lower the general loss by more than one paired standard error, and no earlier task is to be kept.
    """
    lost = harmed(evidence)
    if not lost and evidence.earlier is None:
        return RetentionDecision(
            "none",
            0.0,
            ("the adapter raises the loss on no reference text beyond its error, so there is nothing to keep",),
        )
    if lost:
        worst = max(lost, key=lambda name: lost[name])
        reasons = [f"as trained the adapter raises the loss on {worst} by {lost[worst]:.3f} nats a token"]
    else:
        reasons = [
            "the adapter raises the loss on no reference text beyond its error, but earlier tasks are to be kept"
        ]
    points = {SCALE: chosen(evidence.scale_path), FILTER: chosen(evidence.filter_path)}
    usable = {
        arm: point for arm, point in points.items() if point is not None and _written_within(evidence, arm, point)
    }
    reasons += [f"{arm}: {why}" for arm, why in sorted(evidence.refused.items())]
    reasons += [
        f"no {arm} strength stays within the tolerance on the {evidence.selection_rows} selection rows"
        for arm in (SCALE, FILTER)
        if arm not in usable and arm not in evidence.refused
    ]
    best = RAW
    for arm in (SCALE, FILTER):
        if arm in usable:
            gain, error = _gain(evidence.references, best, arm)
            words = f"{arm} lowers general loss by {gain:+.3f} ± {error:.3f} nats a token against {best}"
            better = gain > error
            reasons.append(words if better else f"{words}, which is not told apart")
            if evidence.earlier is not None and abs(gain) <= error:
                better = evidence.earlier[arm] < evidence.earlier[best]
                reasons.append(
                    f"on the earlier tasks' inputs {arm} moves the layers by {evidence.earlier[arm]:.3g} of what the update as trained does, "
                    f"{best} by {evidence.earlier[best]:.3g}"
                )
            best = arm if better else best
    if best == RAW:
        return RetentionDecision("none", 0.0, tuple(reasons))
    point = usable[best]
    if best == FILTER and evidence.shortened:
        reasons.append(
            f"before the filter the update was made shorter, to {1 / (1 + evidence.shortened):.2g} of its size, because the task itself is better for it"
        )
    reasons.append(
        f"its strength {point.strength:.3g} costs {point.rise:+.4f} ± {point.standard_error:.4f} nats a token on the selection rows, "
        f"{point.limit:.4f} were allowed"
    )
    return RetentionDecision(best, point.strength, tuple(reasons))


def harmed(evidence: RetentionEvidence) -> dict[str, float]:
    """The rise of the loss on each reference set that the adapter as trained harms, nats per token."""
    rises = {name: paired(units.base, units.arms[RAW], units.labels) for name, units in evidence.references.items()}
    return {name: rise for name, (rise, error) in rises.items() if rise > max(NOTHING, 2 * error)}


def _written_within(evidence: RetentionEvidence, arm: str, point: PathPoint) -> bool:
    rise = evidence.written_rise.get(arm, point.rise)
    return arm not in evidence.refused and rise + point.standard_error <= point.limit


def _gain(references: Mapping[str, UnitLosses], before: str, after: str) -> tuple[float, float]:
    """How much lower the loss is, a mean over reference sets of nats per token, and its paired standard error."""
    parts = [paired(units.arms[after], units.arms[before], units.labels) for units in references.values()]
    count = len(parts)
    return math.fsum(rise for rise, _ in parts) / count, math.sqrt(math.fsum(error**2 for _, error in parts)) / count


def summary(made: Retention) -> str:
    """One line for people: the choice, what it cost on the task, and each reference set before and after.

    The task's loss is that of rows that chose nothing where there are any, else of the rows that chose the strength.
    """
    choice = made.decision.choice
    arm = RAW if choice == "none" else choice
    words = [f"{choice}, strength {made.decision.strength:.3g}" if made.decision.strength else choice]
    if arm in made.task:
        words.append(f"task {made.task[arm].base:.4f} -> {made.task[arm].adapted:.4f}")
    words += [
        f"{one.name} {one.rise[RAW].difference:+.3f} -> {one.rise[arm].difference:+.3f}" for one in made.references
    ]
    return "; ".join(words)
