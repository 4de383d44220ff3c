"""Which rows a step sees: a pure function of seed and step, so that a resumed run needs no sampler state.

Epochs are seeded permutations laid end to end; step s takes the next `effective_batch_size` rows, the last step what is
left. Inside a step rows are dealt out in micro-batches: sorted by length, so that little is padding, or by tokens when they
are packed. Every row is seen exactly once an epoch, whatever the number of ranks.
"""

import functools
import heapq
import itertools
import math
import random
from collections.abc import Sequence
from pathlib import Path

from lora_select.data.labels.tokens import TokenRow, read_rows
from lora_select.records import TrainingPlan
from lora_select.training.job import TrainingJob
from lora_select.training.validation import split


def rows_of(job: TrainingJob) -> tuple[list[TokenRow], list[TokenRow]]:
    """The rows that are trained on, reference text last, and the task's rows that are kept from it."""
    trained, kept = split(read_rows(Path(job.train_tokens)), job.plan.validation_rows, job.plan.seed)
    return [*trained, *(read_rows(Path(job.replay_tokens)) if job.replay_tokens else [])], kept


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
    places = (divmod(place, count) for place in range(first, last))
    return [_order(count, seed, epoch)[index] for epoch, index in places]


def trained_tokens(plan: TrainingPlan, rows: Sequence[TokenRow], steps: int) -> int:
    """Tokens that the first `steps` steps train on."""
    numbers = (
        number
        for step in range(steps)
        for number in rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
    )
    return sum(len(rows[number].input_ids) for number in numbers)


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> tuple[int, ...]:
    """The seeded permutation of an epoch; kept, since every step asks for it."""
    order = list(range(count))
    random.Random(f"{seed}:{epoch}").shuffle(order)
    return tuple(order)


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


def packed_micro_batches(rows: Sequence[TokenRow], ranks: int, accumulation: int) -> list[list[list[TokenRow]]]:
    """Deal the rows of one step out for packing: micro-batches of nearly equal numbers of tokens.

    Longest row first, each to the micro-batch with the fewest tokens (Graham 1969: at most 4/3 of the best longest one), and
    no micro-batch stays empty while there are rows.
    """
    slots: list[list[TokenRow]] = [[] for _ in range(ranks * accumulation)]
    filled = [(0, slot) for slot in range(len(slots))]
    for row in sorted(rows, key=lambda row: (-len(row.input_ids), row.row_id)):
        tokens, slot = heapq.heappop(filled)
        slots[slot].append(row)
        heapq.heappush(filled, (tokens + len(row.input_ids), slot))
    return [[slots[index * ranks + rank] for index in range(accumulation)] for rank in range(ranks)]


def dealt(rows: Sequence[TokenRow], plan: TrainingPlan) -> list[list[list[TokenRow]]]:
    """The micro-batches of one step, `result[rank][i]`, as the plan wants them."""
    deal = packed_micro_batches if plan.packing else micro_batches
    return deal(rows, plan.num_processes, plan.gradient_accumulation_steps)


def heaviest(rows: Sequence[TokenRow], plan: TrainingPlan) -> list[TokenRow]:
    """The micro-batch of the whole training that holds the most tokens, padding included."""
    best: list[TokenRow] = []
    most = 0
    for step in range(plan.total_steps):
        numbers = rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
        for part in itertools.chain.from_iterable(dealt([rows[number] for number in numbers], plan)):
            if (size := held_tokens(part, plan.packing)) > most:
                best, most = part, size
    return best


def held_tokens(part: Sequence[TokenRow], packing: bool) -> int:
    """Tokens a micro-batch makes the model run over: all of them when packed, rows x the longest when padded."""
    lengths = [len(row.input_ids) for row in part]
    return sum(lengths) if packing else len(lengths) * max(lengths, default=0)


def masked(row: TokenRow) -> TokenRow:
    """The row without labels: its loss and gradient are zero."""
    return TokenRow(row.row_id, row.input_ids, (False,) * len(row.label_mask))
