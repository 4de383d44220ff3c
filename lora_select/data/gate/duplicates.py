"""Rows that say the same: byte for byte, but for case and punctuation, or nearly."""

from collections.abc import Sequence

from lora_select.data.gate.checked_rows import Flag, GateRow, exact_key, normal_key, of_split
from lora_select.data.likeness import similar


def exact(rows: Sequence[GateRow]) -> list[Flag]:
    """Rows that are byte for byte as an earlier one of their split (messages and tools)."""
    first: set[tuple[str, bytes]] = set()
    found = []
    for row in rows:
        key = row.split, exact_key(row)
        if key in first:
            found.append(Flag(row.row_id, row.split, "a copy"))
        first.add(key)
    return found


def normal(rows: Sequence[GateRow]) -> list[Flag]:
    """Training rows that differ from an earlier one in case, punctuation and spaces only."""
    first: dict[bytes, bytes] = {}
    found = []
    for row in rows:
        if row.split != "train":
            continue
        whole = exact_key(row)
        key = normal_key(row)
        if first.setdefault(key, whole) != whole:
            found.append(Flag(row.row_id, row.split, "equal but for case, punctuation or spaces"))
    return found


def near(rows: Sequence[GateRow], threshold: float = similar.THRESHOLD) -> list[Flag]:
    """Training rows that are near an earlier one: Jaccard similarity of character 5-grams of `threshold` or more.

    Of each cluster the first row is not flagged, and rows that are equal but for case and punctuation are another rule's.
    """
    indices = of_split(rows, "train")
    made = similar.sketch((rows[index].content for index in indices), count=len(indices))
    found = similar.clusters(made, lambda place: rows[indices[place]].content, threshold)
    alike: dict[int, tuple[int, float]] = {}
    for one, other, value in found.pairs:
        for row, twin in ((one, other), (other, one)):
            if value > alike.get(row, (0, 0.0))[1]:
                alike[row] = (twin, value)
    sizes: dict[int, int] = {}
    for label in found.label.tolist():
        sizes[label] = sizes.get(label, 0) + 1
    keys: dict[int, set[bytes]] = {}
    flags = []
    for place, label in enumerate(found.label.tolist()):
        if sizes[label] < 2:
            continue
        row = rows[indices[place]]
        key = normal_key(row)
        if label != place and key not in keys[label]:
            seen = f"one of {sizes[label]} alike, nearest {alike[place][1]:.2f}"
            flags.append(Flag(row.row_id, row.split, seen))
        keys.setdefault(label, set()).add(key)
    return flags
