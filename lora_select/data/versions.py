"""A dataset beside an earlier version, such as the one that the present champion was trained on."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from lora_select.data.gate.checked_rows import GateRow, Rows
from lora_select.data.gate.drift import drift
from lora_select.data.store import identity
from lora_select.records import Dataset, Drift, VersionChange

LEAST_NEW = 0.01
"""Rows that were added or removed, as a share of those that stayed, below which the two are not tested for drift."""


def compare(new: Dataset, new_folder: Path, old: Dataset, old_folder: Path, scratch: Path) -> VersionChange:
    """Say what changed: "unchanged", "grown by N rows", or "drifted, because ...".

    The rows are compared by digest, and where at least 1 % were added or removed the training rows are tested for drift.

    Args:
        new: the record of the newer dataset.
        new_folder: where its files are.
        old: the record of the earlier one.
        old_folder: where its files are.
        scratch: where large datasets are laid out; nothing stays there.
    """
    found = identity.difference(old_folder, new_folder)
    sources = {item.name for item in new.sources}, {item.name for item in old.sources}
    appeared, gone = tuple(sorted(sources[0] - sources[1])), tuple(sorted(sources[1] - sources[0]))
    tested: Drift | None = None
    enough = len(found.added) + len(found.removed) >= LEAST_NEW * max(1, found.unchanged)
    if enough and importlib.util.find_spec("sklearn") is not None:
        tested = drift(_train(new, new_folder, scratch), _train(old, old_folder, scratch))
    return VersionChange(
        verdict=_verdict(len(found.added), len(found.removed), tested),
        sentence=_sentence(found, tested, appeared, gone),
        added=len(found.added),
        removed=len(found.removed),
        unchanged=found.unchanged,
        drift=tested,
        new_sources=appeared,
        gone_sources=gone,
    )


def _train(dataset: Dataset, folder: Path, scratch: Path) -> Iterator[GateRow]:
    return (row for row in Rows(dataset, folder, scratch) if row.split == "train")


def _verdict(added: int, removed: int, tested: Drift | None) -> str:
    if tested is not None and tested.drifted:
        return "drifted"
    if not added and not removed:
        return "unchanged"
    if not removed:
        return "grown"
    return "changed" if added else "shrunk"


def _sentence(
    found: identity.Difference, tested: Drift | None, appeared: tuple[str, ...], gone: tuple[str, ...]
) -> str:
    said = found.sentence()
    if tested is None or not tested.drifted:
        return said
    reasons = [*tested.because]
    reasons += [f"new: {', '.join(appeared)}"] * bool(appeared) + [f"gone: {', '.join(gone)}"] * bool(gone)
    return f"drifted, because {'; '.join(reasons) or 'a classifier tells the two apart'} ({said})"
