"""Which rows are held out: groups of one prompt, or of near-duplicates, whole, by a hash that stays as the data grows."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_select.data.likeness.similar import find
from lora_select.data.store.spill import Digests

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

LEAST_HELD_OUT = 2


@dataclass(frozen=True)
class Split:
    """`held_out` (rows,): whether each row is; `rule` says by what it was decided."""

    held_out: "NDArray[numpy.bool_]"
    rule: str


def hashes(identities: Sequence[str], seed: int, purpose: str) -> "NDArray[numpy.uint64]":
    """The first 8 bytes of SHA-256(`purpose:seed:identity`) of each identity."""
    import numpy as np

    made = (hashlib.sha256(f"{purpose}:{seed}:{identity}".encode()).digest()[:8] for identity in identities)
    return np.fromiter((int.from_bytes(digest, "big") for digest in made), np.uint64, len(identities))


def grouped(first: "NDArray[numpy.int64]", near: "NDArray[numpy.int64]") -> "NDArray[numpy.int64]":
    """Smallest index of each row's group: rows with one prompt, or near one another, are of one group.

    Args:
        first: index of the first row with each row's prompt.
        near: smallest index of each row's cluster of near-duplicates.
    """
    import numpy as np

    parent = first.tolist()
    for index in np.flatnonzero(near != np.arange(len(near))).tolist():
        one, two = find(parent, index), find(parent, int(near[index]))
        parent[max(one, two)] = min(one, two)
    label = np.array(parent, np.int64)
    while (following := label[label]).tobytes() != label.tobytes():
        label = following
    return label


def split(row_ids: Sequence[str], prompts: Digests, near: "NDArray[numpy.int64]", fraction: float, seed: int) -> Split:
    """Hold out about `fraction` of the rows.

    Groups of near-duplicates and equal prompts stay whole. Where so many rows are of one group that nothing is left to hold out, the
    rows are divided by prompt alone; where that cannot be either (all rows have one prompt), row by row.
    """
    import numpy as np

    keys = prompts.keys()
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    by_prompt = first[inverse].astype(np.int64)
    levels = (
        ("prompts and near-duplicates", lambda: grouped(by_prompt, near)),
        ("prompts", lambda: by_prompt),
    )
    for rule, groups in levels:
        chosen = _choose(groups(), prompts, keys, fraction, seed)
        if chosen is not None:
            return Split(chosen, f"by a hash of {rule}")
    order = hashes(row_ids, seed, "split")
    count = min(len(row_ids) - 1, max(LEAST_HELD_OUT, round(fraction * len(row_ids))))
    held = np.zeros(len(row_ids), bool)
    held[np.argsort(order, kind="stable")[: max(0, count)]] = True
    why = (
        f"all {len(row_ids)} rows have the same prompt" if len(first) == 1 else "too few prompts to hold some out whole"
    )
    return Split(held, f"row by row, because {why}")


def _choose(
    groups: "NDArray[numpy.int64]", prompts: Digests, keys: "NDArray[numpy.uint64]", fraction: float, seed: int
) -> "NDArray[numpy.bool_] | None":
    """Held-out rows by group, or None where groups are too large for it.

    A group's hash is that of its smallest prompt digest; one that is larger than the share to be held out is learnt.
    """
    import numpy as np

    wanted = fraction * len(groups)
    ordered = np.lexsort((keys, groups))
    starts = np.flatnonzero(np.concatenate([[True], groups[ordered][1:] != groups[ordered][:-1]]))
    sizes = np.diff(np.concatenate([starts, [len(groups)]]))
    smallest = ordered[starts]
    ranks = hashes(_Chosen(prompts, smallest), seed, "split")
    order = np.argsort(ranks, kind="stable")
    order = order[sizes[order] <= max(1.0, wanted)]
    below = ranks[order] < np.uint64(min(int(fraction * 2**64), 2**64 - 1))
    reached = np.cumsum(sizes[order])
    least = max(float(LEAST_HELD_OUT), 0.5 * wanted)
    taken = order[below | (reached - sizes[order] < least)]
    held = np.isin(groups, groups[smallest[taken]])
    if not LEAST_HELD_OUT <= held.sum() < len(groups):
        return None
    return held


class _Chosen(Sequence[str]):
    """Some digests, read one at a time."""

    def __init__(self, digests: Digests, indices: "NDArray[numpy.int64]") -> None:
        self._digests, self._indices = digests, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: Any) -> Any:
        return self._digests[int(self._indices[index])]
