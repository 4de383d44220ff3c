"""Validation while training: which rows are kept from training for it, how often they are looked at, and what they say. Pure functions."""

import dataclasses
import hashlib
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from lora_select.data.labels.tokens import TokenRow

FEWEST, MOST = 8, 64
"""Rows that are kept: fewer say nothing, more say little more and cost time."""
LABELS = 32
"""Labels that the kept rows hold where a quarter of the rows has them: a row of one label says little."""
EARLY = 4
"""Looks before the first regular one, at a half of its step, a quarter, and so on, where training goes over its rows again."""
AGAIN = 2
"""Epochs from which training goes over its rows again."""
MOST_EPOCHS = 10.0
"""The end of `epochs: auto`, where patience does not come first."""
BUDGET = 0.03
"""What looking at them may cost, as a share of the training's time."""
FORWARD_SHARE = 0.5
"""Time of a forward pass over that of forward and backward, with a frozen base (2 of 4 products a weight and token)."""
AUTO = "auto"
"""The word for so many epochs as the kept rows want."""
ALONE = 8
"""Tokens that a prompt has at least where rows of one prompt are kept together."""


@final
@dataclass(frozen=True)
class Point:
    """One look: after `step` steps the kept rows lost `losses`, nats summed over the labels of each row."""

    step: int
    losses: tuple[float, ...]


def kept_rows(count: int, share: float, labels: float = math.inf) -> int:
    """How many of `count` training rows are kept for validation: 8 at least, or none where that is more than a third of them.

    Args:
        count: rows that can be trained on.
        share: wanted, 0 for none.
        labels: learnt tokens of a row, in the mean; where they are few, up to a quarter of the rows is kept for the sake of 32.

    >>> [kept_rows(count, 0.05) for count in (20, 24, 480, 100_000)], kept_rows(480, 0.0)
    ([0, 8, 24, 64], 0)
    >>> [kept_rows(count, 0.05, labels=1.0) for count in (24, 48, 192)]
    [8, 12, 32]
    """
    if not share:
        return 0
    few = min(count // 4, math.ceil(LABELS / max(1.0, labels)))
    wanted = min(MOST, max(FEWEST, round(count * share), few))
    return wanted if 3 * wanted <= count else 0


def most_epochs(epochs: float | str) -> float:
    """The passes over the rows that are planned; `auto` ends earlier, when patience does."""
    return MOST_EPOCHS if epochs == AUTO else float(epochs)


def split(rows: Sequence[TokenRow], kept: int, seed: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Rows to train on and `kept` rows to validate with, both in file order; rows of one prompt stay on one side where they can.

    The same rows are kept for the same seed, whatever trains on the others: they choose the checkpoint and how much is filtered off.
    """
    if not kept:
        return list(rows), []
    first: dict[str, str] = {}
    for row in rows:  # a row that is learnt in several texts stays whole
        first.setdefault(row.row_id, _prompt(row))
    keys = [first[row.row_id] for row in rows]
    if len(set(keys)) < 2 * kept:
        keys = [row.row_id for row in rows]
    order = sorted(set(keys), key=lambda key: hashlib.sha256(f"{seed}:{key}".encode()).digest())
    members: dict[str, list[int]] = {}
    for place, key in enumerate(keys):
        members.setdefault(key, []).append(place)
    chosen: set[int] = set()
    for key in order:
        if len(chosen) + len(members[key]) <= kept:
            chosen.update(members[key])
        if len(chosen) == kept:
            break
    return [row for i, row in enumerate(rows) if i not in chosen], [rows[i] for i in sorted(chosen)]


def _prompt(row: TokenRow) -> str:
    first = next((i for i, learnt in enumerate(row.label_mask) if learnt), 0)
    return repr(row.input_ids[:first]) if first >= ALONE else row.row_id


def steps_between(kept_tokens: int, trained_tokens: int, total_steps: int, epochs: float = 1.0) -> int:
    """Steps between two looks so that all of them, the first and the last too, cost at most 3 % of the training, but no more than an epoch has.

    >>> steps_between(1_900, 38_000, 30), steps_between(1_900, 3_800_000, 3_000), steps_between(300, 15_000, 50, epochs=10)
    (30, 60, 5)
    """
    affordable = math.floor(BUDGET * trained_tokens / (FORWARD_SHARE * max(1, kept_tokens)))
    cheapest = math.ceil(total_steps / max(1, affordable - 1))
    an_epoch = math.floor(total_steps / max(1.0, epochs))
    return max(1, min(an_epoch, max(cheapest, math.ceil(total_steps / 50))))


def is_due(done: int, every: int, last: int, epochs: float = 1.0) -> bool:
    """Whether the kept rows are looked at after `done` steps: before the first, every so many, after the last; and early, see `EARLY`.

    A look that the last one follows within half of `every` is left out.

    >>> [done for done in range(54) if is_due(done, 15, 53, epochs=3)], [done for done in range(31) if is_due(done, 25, 30)]
    ([0, 1, 3, 7, 15, 30, 45, 53], [0, 30])
    """
    early = epochs >= AGAIN and any(done == every >> half for half in range(1, EARLY + 1))
    return done in (0, last) or (done % every == 0 and 2 * (last - done) >= every) or early


def mean_loss(point: Point, labels: Sequence[int]) -> float:
    """Nats per label token."""
    return sum(point.losses) / sum(labels)


def best(points: Sequence[Point]) -> Point | None:
    """The look with the lowest loss, the earlier one of equals; None without a look."""
    return min(points, key=lambda point: (sum(point.losses), point.step), default=None)


def worse(point: Point, than: Point) -> bool:
    """Whether the loss rose beyond one standard error of the paired difference over rows."""
    differences = [a - b for a, b in zip(point.losses, than.losses, strict=True)]
    return statistics.mean(differences) > statistics.stdev(differences) / math.sqrt(len(differences))


def is_over(points: Sequence[Point], patience: int, every: int = 1) -> bool:
    """Whether the last `patience` looks were all worse than the best one before them; never where `patience` is 0.

    Looks before step `every` are too near to one another to end anything.

    >>> rows = [Point(step, tuple(loss + 0.1 * i for i in range(8))) for step, loss in ((5, 2.0), (10, 1.0), (15, 1.5), (20, 1.6))]
    >>> is_over(rows[:3], 2), is_over(rows, 2), is_over(rows, 0), is_over(rows, 2, every=20)
    (False, True, False, False)
    """
    if not patience or len(points) <= patience or points[-patience].step < every:
        return False
    before = best(points[:-patience])
    return before is not None and all(worse(point, before) for point in points[-patience:])


def as_json(point: Point) -> dict[str, object]:
    """The line of a look in `validation.jsonl`."""
    return dataclasses.asdict(point)
