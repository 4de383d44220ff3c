"""Intake: whatever the user brings becomes one canonical Parquet of messages; every row is kept or counted.

Rows are read one at a time, laid into buckets by their digest, sorted bucket by bucket and written: memory holds one bucket, the
digests, and 210 bytes of signature a row. So the same rows give the same bytes whatever their files were called or in which order
they came, and memory does not grow with their text (benchmarks/intake.py, measured up to a million rows).
"""

import hashlib
import os
import shutil
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select.data.likeness import similar, splitting
from lora_select.data.reading import conversion
from lora_select.data.reading.conversion import Conversion
from lora_select.data.reading.formats import RowOptions
from lora_select.data.reading.sources import Opened, Progress, Source, check_source, counted, open_source
from lora_select.data.store import canonical, identity
from lora_select.data.store.canonical import read_canonical, read_places
from lora_select.data.store.row_account import Ledger
from lora_select.data.store.spill import Buckets, Digests, SpilledRow
from lora_select.errors import InputError
from lora_select.records import Dataset, LeftOutFile, SourceFile, file_ref

__all__ = ["check_source", "intake", "read_canonical", "read_places"]

NOTHING_SAID = RowOptions()
TRAIN, HELD_OUT = 0, 1
OUTPUTS = ("train.parquet", "eval.parquet", "places.parquet", "identity.json", "rejected.jsonl")
LEAST_EVAL = 2
NAMED, NOTHING, OWN_SPLIT = "files that are named as held out", "nothing is held out", "split "
"""What a dataset's `eval_source` says where none is named; behind `OWN_SPLIT` stands by what the rows were divided."""


def own_split(dataset: Dataset) -> bool:
    """Whether the evaluation rows were held out by us, and not named by the user."""
    return dataset.eval_source.startswith(OWN_SPLIT)


@dataclass(frozen=True)
class _Read:
    """What was read of one source: its buckets are filled, its files stand in the ledger from `first` on."""

    opened: Opened
    first: int
    conversion: Conversion


def intake(
    *,
    source: Source,
    name: str,
    folder: Path,
    format: str = "auto",  # noqa: A002  (the config's own word)
    options: RowOptions = NOTHING_SAID,
    revision: str | None = None,
    split: str | None = None,
    eval_source: Source | None = None,
    eval_fraction: float = 0.1,
    max_train_rows: int | None = None,
    max_eval_rows: int | None = None,
    split_seed: int = 0,
    keep_duplicates: bool = False,
    keep_leaks: bool = False,
    least_eval: int = LEAST_EVAL,
    progress: Progress | None = None,
) -> Dataset:
    """Read a source, convert every row, split, and write `train.parquet`, `eval.parquet`, `places.parquet` and `rejected.jsonl`.

    Rows of one prompt, and near-duplicates, never fall into both splits. Files that are named as held out (`test.jsonl`,
    `validation/`) are evaluated on and never trained on.

    Args:
        source: a file, a folder, a pattern, `sample:<name>`, a hub id, or rows.
        name: what the dataset is called.
        folder: where the files go.
        format: `auto` or one of `formats.FORMATS`.
        options: what the user says of the rows: column names, what is ignored, which answers are learnt.
        revision: of a hub dataset.
        split: of a hub dataset, or of a folder whose files name splits.
        eval_source: rows to evaluate on; None takes files that are named as held out, else splits `source`.
        eval_fraction: share of rows that are held out when there is nothing else to evaluate on; 0 for a check of the rows alone.
        max_train_rows: keep the rows with the smallest hashes; the others are counted.
        max_eval_rows: the same for the evaluation rows.
        split_seed: changes the split and the subsets; it belongs to the dataset, not to a run.
        keep_duplicates: keep exact copies of a row (each gets a digest of its own) instead of counting them as left out.
        keep_leaks: keep evaluation rows that are also training rows, for the gate to report, instead of refusing.
        least_eval: evaluation rows without which the source is refused.
        progress: hears of bytes read and rows a second.

    Raises:
        InputError: nothing to read, wrong columns, no usable row, or an evaluation row among the training rows.
    """
    ledger = Ledger()
    scratch = scratch_folder(folder)
    try:
        buckets = Buckets(scratch)
        read = _read(
            source, ledger, buckets, folder, revision, split, progress, format, options, TRAIN, eval_source is not None
        )
        more = None
        if eval_source is not None:
            more = _read(
                eval_source, ledger, buckets, folder, revision, split, progress, format, options, HELD_OUT, True
            )
        sorted_file = scratch / "rows.arrow"
        rows = SortedRows.write(sorted_file, buckets, ledger, keep_duplicates=keep_duplicates, keep_leaks=keep_leaks)
        held_out, rule = _held_out(rows, sorted_file, more is not None, eval_fraction, split_seed)
        keep = _limited(rows, held_out, max_train_rows, max_eval_rows, split_seed, ledger)
        if not len(rows.row_ids):
            raise InputError(_nothing_usable(source, ledger))
        train, evaluated = int((keep & ~held_out).sum()), int((keep & held_out).sum())
        if train < 1 or evaluated < least_eval:
            raise InputError(_too_few(source, train, evaluated, least_eval))
        for index in keep.nonzero()[0]:
            ledger.accepted[rows.files[index]] += 1
        ledger.check()
        leaves = write_all(sorted_file, scratch, rows, keep, held_out, ledger)
        for file in OUTPUTS:
            os.replace(scratch / file, folder / file)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    reads = [read, *([more] if more else [])]
    return Dataset(
        name=name,
        source=source if isinstance(source, str) else str(source) if isinstance(source, Path) else "rows",
        format=conversion.named([item.conversion for item in reads]),
        digest=identity.root([leaves["train"], leaves["eval"]]),
        train_rows=train,
        eval_rows=evaluated,
        train_file=file_ref(folder / "train.parquet", folder),
        eval_file=file_ref(folder / "eval.parquet", folder),
        rejected_file=file_ref(folder / "rejected.jsonl", folder),
        sources=tuple(sorted(_sources(reads, ledger), key=lambda item: item.name)),
        rejected=ledger.summary(),
        eval_source=str(eval_source) if isinstance(eval_source, str | Path) else "rows" if more else rule,
        notes=tuple(dict.fromkeys(note for one in reads for note in one.conversion.notes())),
        left_out=tuple(LeftOutFile(item.name, item.reason) for one in reads for item in one.opened.left_out),
        places_file=file_ref(folder / "places.parquet", folder),
        identity_file=file_ref(folder / "identity.json", folder),
        split_seed=split_seed,
    )


def write_all(
    sorted_file: Path, scratch: Path, rows: "SortedRows", keep: Any, held_out: Any, ledger: Ledger
) -> dict[str, list[str]]:
    """Write the files of a dataset (`OUTPUTS`) of the rows that are kept; returns the Merkle leaves of each split."""
    leaves = canonical.write_splits(sorted_file, scratch, keep, held_out)
    canonical.write_places(scratch / "places.parquet", rows, ledger.names, keep, held_out)
    identity.write(scratch / "identity.json", leaves)
    ledger.write(scratch / "rejected.jsonl")
    return leaves


def scratch_folder(folder: Path) -> Path:
    """A new folder for what is half-written; what a killed intake left is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(f"{canonical.SCRATCH}*"):
        shutil.rmtree(left, ignore_errors=True)
    scratch = folder / f"{canonical.SCRATCH}{os.getpid()}"
    scratch.mkdir()
    return scratch


def _read(
    source: Source,
    ledger: Ledger,
    buckets: Buckets,
    folder: Path,
    revision: str | None,
    split: str | None,
    progress: Progress | None,
    wanted: str,
    options: RowOptions,
    role: int,
    own_eval: bool,
) -> _Read:
    """Convert every row of a source into the buckets, or count it."""
    opened = open_source(
        source, revision=revision, split=split, folder=folder, own_eval=own_eval, as_eval=role == HELD_OUT
    )
    first = len(ledger.names)
    numbers = [ledger.file(stream.name) for stream in opened.streams]
    made = Conversion(wanted, options, alone=len(opened.streams) == 1)
    before, kept = ledger.rejected(), buckets.rows
    for index, number, row in _numbered(made, opened, numbers, progress):
        del index
        ledger.seen[number] += 1
        held_out = role or int(opened.streams[number - first].held_out)
        if row.split in ("validation", "test"):
            if own_eval and role == TRAIN:
                ledger.reject(number, row.line, f"held out by the name of its list ({row.split})")
                continue
            held_out = HELD_OUT
        result = made.convert(row)
        if isinstance(result, str):
            ledger.reject(number, row.line, result)
        else:
            buckets.add(
                SpilledRow(result.row_id, result.prompt_id, number, row.line, held_out, result.messages, result.tools)
            )
    if buckets.rows == kept and own_eval and role == HELD_OUT:
        raise InputError(_nothing_usable(source, ledger, before))
    return _Read(opened, first, made)


def _numbered(made: Conversion, opened: Opened, numbers: list[int], progress: Progress | None) -> Iterator[Any]:
    """Rows with the number of their file; the format of each file is settled from its first rows, which are then given too."""
    held: list[Any] | None = []
    current = -1
    for index, row in counted(opened.streams, progress):
        if index != current:
            yield from _settled(made, held, numbers)
            held, current = [], index
        if held is not None:
            held.append((index, row))
            if len(held) >= conversion.SAMPLE:
                yield from _settled(made, held, numbers)
                held = None
            continue
        yield index, numbers[index], row
    yield from _settled(made, held, numbers)


def _settled(made: Conversion, held: list[Any] | None, numbers: list[int]) -> Iterator[Any]:
    if held:
        made.settle([row for _, row in held])
        for index, row in held:
            yield index, numbers[index], row


class SortedRows:
    """All distinct rows in the order of their digests: their text in a file, the rest here."""

    def __init__(self) -> None:
        self.row_ids, self.prompt_ids = Digests(), Digests()
        self.files, self.lines, self.held_out = array("i"), array("q"), bytearray()

    @classmethod
    def write(
        cls, path: Path, buckets: Buckets, ledger: Ledger, *, keep_duplicates: bool, keep_leaks: bool
    ) -> "SortedRows":
        """Sort the buckets into a file; exact copies are counted, leaks refused, unless they are to be kept.

        Raises:
            InputError: an evaluation row is also a training row.
        """
        made, leaks = cls(), []
        with canonical.Sorted(path) as stream:
            for copies in buckets.sorted():
                splits = [[row for row in copies if row.held_out == role] for role in (TRAIN, HELD_OUT)]
                if all(splits):
                    leaks.append((splits[HELD_OUT][0], splits[TRAIN][0]))
                for rows in splits:
                    for count, row in enumerate(rows):
                        if count and not keep_duplicates:
                            ledger.reject(row.file, row.line, "exact duplicate")
                            continue
                        row_id = row.row_id if not count else _copy_id(row.row_id, count)
                        made.add(row, row_id)
                        stream.add(row_id, row.messages, row.tools)
        if leaks and not keep_leaks:
            first, twin = min(leaks, key=lambda pair: (ledger.names[pair[0].file], pair[0].line))
            raise InputError(
                f"{len(leaks)} of {sum(made.held_out)} evaluation rows are also training rows, the first at "
                f"{ledger.names[first.file]}:{first.line} (training: {ledger.names[twin.file]}:{twin.line}); "
                "the result would be worthless, remove them from the training rows"
            )
        return made

    def add(self, row: SpilledRow, row_id: str) -> None:
        """Note a row that was written."""
        self.row_ids.append(row_id)
        self.prompt_ids.append(row.prompt_id)
        self.files.append(row.file)
        self.lines.append(row.line)
        self.held_out.append(row.held_out)


def _copy_id(row_id: str, count: int) -> str:
    """The digest of a kept copy: it begins like the row's own, so that it stays in its bucket and leaf."""
    return row_id[:8] + hashlib.sha256(f"{row_id}:{count}".encode()).hexdigest()[8:]


def _held_out(rows: SortedRows, path: Path, given: bool, fraction: float, seed: int) -> tuple[Any, str]:
    """Which rows are held out, and by what that was decided."""
    import numpy as np

    named = np.frombuffer(rows.held_out, np.uint8) == HELD_OUT
    if given or named.any():
        return named, NAMED
    if not len(rows.row_ids) or not fraction:
        return named, NOTHING
    reader = canonical.SortedReader(path)
    made = similar.sketch(reader.texts(), count=len(rows.row_ids))
    near = similar.clusters(made, reader.text_at).label
    del made
    chosen = splitting.split(rows.row_ids, rows.prompt_ids, near, fraction, seed)
    return chosen.held_out, f"{OWN_SPLIT}{chosen.rule}"


def _limited(
    rows: SortedRows, held_out: Any, most_train: int | None, most_eval: int | None, seed: int, ledger: Ledger
) -> Any:
    """(rows,) whether each is kept: at most so many of each split, those with the smallest hashes."""
    import numpy as np

    keep = np.ones(len(rows.row_ids), bool)
    for role, most, reason in ((False, most_train, "over max_train_rows"), (True, most_eval, "over max_eval_rows")):
        indices = np.flatnonzero(held_out == role)
        if most is None or len(indices) <= most:
            continue
        ranks = splitting.hashes([rows.row_ids[int(index)] for index in indices], seed, "subset")
        for index in indices[np.argsort(ranks, kind="stable")[most:]]:
            keep[index] = False
            ledger.reject(rows.files[int(index)], rows.lines[int(index)], reason)
    return keep


def _sources(reads: list[_Read], ledger: Ledger) -> Iterator[SourceFile]:
    for read in reads:
        for number, stream in enumerate(read.opened.streams, start=read.first):
            yield SourceFile(
                ledger.names[number],
                stream.sha256,
                ledger.seen[number],
                ledger.accepted[number],
                read.conversion.of_file(stream.name),
            )


def _nothing_usable(source: Source, ledger: Ledger, since: int = 0) -> str:
    named = source if isinstance(source, str | Path) else "the source"
    if ledger.rejected() == since:
        return f"{named} is empty: it holds no row; name a dataset with rows"
    file, line, reason = ledger.first(since)
    return (
        f"none of the {ledger.rejected() - since} rows of {named} can be used; the first is at {file}:{line} ({reason}); "
        "mend the rows or set `dataset.format`"
    )


def _too_few(source: Source, train: int, evaluated: int, least_eval: int) -> str:
    named = source if isinstance(source, str | Path) else "the source"
    return (
        f"{named} leaves {train} training and {evaluated} evaluation rows; at least 1 and {least_eval} are needed: "
        "bring more rows, or name `dataset.eval_source`"
    )
