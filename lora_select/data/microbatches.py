"""The microbatches of the spectral pass: drawn from the training rows as training draws them."""

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lora_select.data.labels.tokens import TokenRow, collate
from lora_select.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

MINIMUM = 4


def draw(
    rows: Sequence[TokenRow], *, microbatches: int, size: int, seed: int, pad_id: int
) -> "list[dict[str, Tensor]]":
    """At most `microbatches` microbatches of `size` rows in random order, no row twice.

    Raises:
        InputError: the rows do not fill four of them.
    """
    if len(rows) < MINIMUM * size:
        raise InputError(
            f"the spectral pass needs at least {MINIMUM * size} training rows ({MINIMUM} microbatches of "
            f"`analysis.microbatch_size` = {size}), got {len(rows)}; lower it or bring more rows"
        )
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    count = min(microbatches, len(shuffled) // size)
    return [collate(shuffled[start * size : (start + 1) * size], pad_id) for start in range(count)]
