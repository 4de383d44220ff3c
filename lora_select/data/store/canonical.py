"""Canonical rows on disk: one sorted Arrow file while intake works, then a Parquet file a split, and where each row came from."""

import json
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lora_select.data.labels.render import Row
from lora_select.data.likeness.similar import content_text
from lora_select.data.store.identity import Leaves

if TYPE_CHECKING:
    import numpy
    from numpy.typing import NDArray

COLUMNS = ("row_id", "messages", "tools")
BATCH = 1024
ROW_GROUP = 8192
HELD_BATCHES = 32
SCRATCH = ".intake-"
"""How the names of folders begin that hold what is half-written; the next intake removes what a killed one left."""


def read_canonical(path: Path) -> Iterator[tuple[str, Row]]:
    """`(row_id, row)` of a canonical Parquet file, in file order, a batch at a time."""
    import pyarrow.parquet

    with path.open("rb") as stream:
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=BATCH):
            for values in batch.to_pylist():
                tools = json.loads(values["tools"]) if values["tools"] else None
                yield values["row_id"], {"messages": json.loads(values["messages"]), "tools": tools}


class Sorted:
    """Writes sorted rows into an Arrow file of batches of 1,024 rows."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        self._writer = pyarrow.ipc.new_file(str(path), self._schema)
        self._rows: list[tuple[str, str, str]] = []

    def __enter__(self) -> "Sorted":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._flush()
        self._writer.close()

    def add(self, row_id: str, messages: str, tools: str) -> None:
        """Write the next row."""
        self._rows.append((row_id, messages, tools))
        if len(self._rows) == BATCH:
            self._flush()

    def _flush(self) -> None:
        import pyarrow

        if self._rows:
            columns = [pyarrow.array(column, pyarrow.string()) for column in zip(*self._rows, strict=True)]
            self._writer.write_batch(pyarrow.record_batch(columns, schema=self._schema))
            self._rows = []


class SortedReader:
    """Reads such a file: in order, or a row by its index. It is not mapped, so that what was read does not stay in memory."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._file = pyarrow.ipc.open_file(pyarrow.OSFile(str(path), "rb"))
        self._held: dict[int, Any] = {}

    def batches(self) -> Iterator[Any]:
        """Record batches of 1,024 rows, the last of fewer."""
        return (self._file.get_batch(index) for index in range(self._file.num_record_batches))

    def texts(self) -> Iterator[str]:
        """What each row says, in order."""
        for batch in self.batches():
            for messages in batch.column("messages").to_pylist():
                yield content_text(json.loads(messages))

    def text_at(self, index: int) -> str:
        """What one row says."""
        return content_text(json.loads(self.row_at(index)[1]))

    def row_at(self, index: int) -> tuple[str, str, str]:
        """Digest, messages and tools (JSON, or empty) of one row."""
        number = index // BATCH
        if number not in self._held:
            if len(self._held) >= HELD_BATCHES:
                self._held.pop(next(iter(self._held)))
            self._held[number] = self._file.get_batch(number)
        row_id, messages, tools = (column[index % BATCH].as_py() for column in self._held[number].columns)
        return row_id, messages, tools


def write_splits(
    path: Path, folder: Path, keep: "NDArray[numpy.bool_]", held_out: "NDArray[numpy.bool_]"
) -> dict[str, list[str]]:
    """Write `train.parquet` and `eval.parquet` of the rows that are kept; returns the Merkle leaves of each split."""
    import pyarrow

    reader = SortedReader(path)
    leaves: dict[str, list[str]] = {}
    for name, role in (("train", False), ("eval", True)):
        chosen = keep & (held_out == role)
        made = Leaves()
        writer = _Parquet(folder / f"{name}.parquet")
        for number, batch in enumerate(reader.batches()):
            mask = chosen[number * BATCH : number * BATCH + batch.num_rows]
            if mask.any():
                rows = batch.filter(pyarrow.array(mask))
                for row_id in rows.column("row_id").to_pylist():
                    made.add(row_id)
                writer.add(rows)
        writer.close()
        leaves[name] = made.hex()
    return leaves


class _Parquet:
    """Row groups of 8,192 rows, so that the bytes depend on the rows alone."""

    def __init__(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        self._schema = pyarrow.schema([(name, pyarrow.string()) for name in COLUMNS])
        self._writer = pyarrow.parquet.ParquetWriter(str(path), self._schema)
        self._held: Any = pyarrow.table({name: pyarrow.array([], pyarrow.string()) for name in COLUMNS})

    def add(self, rows: Any) -> None:
        import pyarrow
        import pyarrow.compute

        compute: Any = pyarrow.compute
        filled = pyarrow.table(
            [
                compute.if_else(compute.equal(column, ""), None, column) if name == "tools" else column
                for name, column in zip(COLUMNS, rows.columns, strict=True)
            ],
            schema=self._schema,
        )
        self._held = pyarrow.concat_tables([self._held, filled])
        while self._held.num_rows >= ROW_GROUP:
            self._writer.write_table(self._held.slice(0, ROW_GROUP).combine_chunks())
            self._held = self._held.slice(ROW_GROUP)

    def close(self) -> None:
        if self._held.num_rows:
            self._writer.write_table(self._held.combine_chunks())
        self._writer.close()


def write_places(
    path: Path, rows: Any, names: list[str], keep: "NDArray[numpy.bool_]", held_out: "NDArray[numpy.bool_]"
) -> None:
    """Where each kept row came from: `row_id`, `file`, `line`, `split`, in the order of the digests."""
    import numpy as np
    import pyarrow
    import pyarrow.parquet

    kept = np.flatnonzero(keep)
    files, lines = np.array(rows.files, np.int32), np.array(rows.lines, np.int64)
    text = pyarrow.string()
    coded = pyarrow.dictionary(pyarrow.int32(), text)
    schema = pyarrow.schema([("row_id", text), ("file", coded), ("line", pyarrow.int64()), ("split", coded)])
    with pyarrow.parquet.ParquetWriter(str(path), schema) as writer:
        for start in range(0, len(kept), ROW_GROUP):
            part = kept[start : start + ROW_GROUP]
            columns = [
                pyarrow.array([rows.row_ids[index] for index in part], text),
                pyarrow.DictionaryArray.from_arrays(pyarrow.array(files[part]), pyarrow.array(names, text)),
                pyarrow.array(lines[part]),
                pyarrow.DictionaryArray.from_arrays(
                    pyarrow.array(held_out[part].astype(np.int32)), pyarrow.array(["train", "eval"], text)
                ),
            ]
            writer.write_table(pyarrow.table(columns, schema=schema))


Places = dict[tuple[str, str], str]
"""`(row digest, split)` -> `file:line`; a row that is in both splits has two places."""


def read_places(path: Path, wanted: set[tuple[str, str]] | None = None) -> Places:
    """The place of each kept row, or of those wanted; none where intake wrote no such file."""
    import pyarrow.parquet

    made: Places = {}
    if not path.is_file():
        return made
    with path.open("rb") as stream:
        columns = ["row_id", "split", "file", "line"]
        for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(columns=columns):
            for row_id, split, file, line in zip(*(batch.column(name).to_pylist() for name in columns), strict=True):
                if wanted is None or (row_id, split) in wanted:
                    made[row_id, split] = f"{file}:{line}"
    return made
