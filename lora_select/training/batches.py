"""Which rows a step sees: a pure function of seed and step, so that a resumed run needs no sampler state.

Epochs are seeded permutations laid end to end; step s takes the next `effective_batch_size` rows, the last step what is
left. Inside a step rows are sorted by length and dealt out in micro-batches, so that little is padding. Every row is seen
exactly once an epoch, whatever the number of ranks.
"""

import itertools
import math
import random
from collections.abc import Sequence

from lora_select.data.tokens import TokenRow


def total_steps(rows: int, epochs: float, effective_batch_size: int, max_steps: int | None) -> int:
    """Optimizer steps: all rows of all epochs, the last batch possibly smaller, at most `max_steps`.

    >>> total_steps(100, 1.0, 16, None), total_steps(100, 2.5, 16, None), total_steps(100, 1.0, 16, 3)
    (7, 16, 3)
    """
    steps = max(1, math.ceil(round(rows * epochs) / effective_batch_size))
    return steps if max_steps is None else min(steps, max_steps)


def rows_of_step(count: int, epochs: float, effective_batch_size: int, seed: int, step: int) -> list[int]:
    """Row numbers of one step (0-based), before they are dealt out."""
    first = step * effective_batch_size
    last = min(first + effective_batch_size, max(1, round(count * epochs)))
    orders: dict[int, list[int]] = {}
    chosen = []
    for place in range(first, last):
        epoch, index = divmod(place, count)
        if epoch not in orders:
            orders[epoch] = list(range(count))
            random.Random(f"{seed}:{epoch}").shuffle(orders[epoch])
        chosen.append(orders[epoch][index])
    return chosen


def micro_batches(rows: Sequence[TokenRow], ranks: int, accumulation: int) -> list[list[list[TokenRow]]]:
    """Deal the rows of one step out: `result[rank][i]` is that rank's i-th micro-batch.

    Micro-batches that run at the same time on different ranks hold rows of similar length. A short last step leaves some
    micro-batches empty; the ranks then run a masked row, so that all of them take part in the reduction.
    """
    slots = ranks * accumulation
    ordered = sorted(rows, key=lambda row: (len(row.input_ids), row.row_id))
    bounds = [round(len(ordered) * slot / slots) for slot in range(slots + 1)]
    parts = [ordered[low:high] for low, high in itertools.pairwise(bounds)]
    return [[parts[index * ranks + rank] for index in range(accumulation)] for rank in range(ranks)]


def masked(row: TokenRow) -> TokenRow:
    """The row without labels: its loss and gradient are zero."""
    return TokenRow(row.row_id, row.input_ids, (False,) * len(row.label_mask))
