"""Rows as the checks see them, and what a check says of one."""

import hashlib
import json
import re
import tempfile
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from lora_select.data.labels.render import answer_text, turn_text
from lora_select.data.likeness.similar import content_text
from lora_select.data.store.canonical import SCRATCH, Sorted, SortedReader
from lora_select.records import Dataset

IN_MEMORY = 96 * 2**20
"""Bytes of canonical text up to which rows are parsed once and held."""

_PUNCTUATION = re.compile(r"[^\w\s]|_", re.UNICODE)


@dataclass(frozen=True)
class GateRow:
    """A canonical row: digest, split (train or eval), messages and tools."""

    row_id: str
    split: str
    messages: Sequence[dict[str, Any]]
    tools: Any = None

    @cached_property
    def answer(self) -> str:
        """The last answer; of plain text the text."""
        return answer_text(self.messages[self.last]) if self.messages else ""

    @cached_property
    def prompt(self) -> str:
        """All turns before the last answer, each on a line of its own."""
        return "\n".join(map(turn_text, self.messages[: self.last]))

    @cached_property
    def question(self) -> str:
        """As `prompt`, without system messages."""
        return content_text(self.messages[: self.last])

    @cached_property
    def content(self) -> str:
        """All turns but system messages."""
        return content_text(self.messages)

    @cached_property
    def everything(self) -> str:
        """All turns."""
        return "\n".join(map(turn_text, self.messages))

    @cached_property
    def last(self) -> int:
        """Index of the last answer."""
        return max((i for i, turn in enumerate(self.messages) if turn["role"] == "assistant"), default=0)


class NothingToJudgeBy(Exception):  # noqa: N818  (no error: the check says so of the set)
    """A check found that it cannot judge this set; its text says why."""


@dataclass(frozen=True)
class Flag:
    """A row that a rule concerns, and what was seen in it."""

    row_id: str
    split: str
    seen: str


class Rows(Sequence[GateRow]):
    """The rows of a dataset on disk, training rows first; held in memory where they are few, else read again each time."""

    def __init__(self, dataset: Dataset, folder: Path, scratch: Path | None = None) -> None:
        """Args: folder: where the dataset's files are; scratch: where a large one is laid out, by default there."""
        import pyarrow.parquet

        self._sizes = {"train": dataset.train_rows, "eval": dataset.eval_rows}
        self._files = {"train": folder / dataset.train_file.path, "eval": folder / dataset.eval_file.path}
        self._held: list[GateRow] | None = None
        size = 0
        for file in self._files.values():
            metadata = pyarrow.parquet.read_metadata(file)
            size += sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
        if size <= IN_MEMORY:
            self._held = list(self._read())
            return
        self._scratch = tempfile.TemporaryDirectory(dir=scratch or folder, prefix=f"{SCRATCH}rows-")
        path = Path(self._scratch.name) / "rows.arrow"
        with Sorted(path) as stream:
            for file in self._files.values():
                for batch in pyarrow.parquet.ParquetFile(file).iter_batches(batch_size=1024):
                    for row_id, messages, tools in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        stream.add(row_id, messages, tools or "")
        self._reader = SortedReader(path)

    def __len__(self) -> int:
        return sum(self._sizes.values())

    def __iter__(self) -> Iterator[GateRow]:
        return iter(self._held) if self._held is not None else self._read()

    @overload
    def __getitem__(self, index: int) -> GateRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[GateRow]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if self._held is not None:
            return self._held[index]
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        split = "train" if index < self._sizes["train"] else "eval"
        return _row(split, *self._reader.row_at(index))

    def _read(self) -> Iterator[GateRow]:
        import pyarrow.parquet

        for split, file in self._files.items():
            with file.open("rb") as stream:
                for batch in pyarrow.parquet.ParquetFile(stream).iter_batches(batch_size=1024):
                    for row_id, messages, tools in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                        yield _row(split, row_id, messages, tools)


def _row(split: str, row_id: str, messages: str, tools: str | None) -> GateRow:
    return GateRow(row_id, split, json.loads(messages), json.loads(tools) if tools else None)


def exact_key(row: GateRow) -> bytes:
    """12 bytes of the digest of messages and tools."""
    return _digest([row.messages, row.tools])


def normal_key(row: GateRow, turns: int | None = None) -> bytes:
    """The same without case, punctuation and runs of space in what is said; of the first `turns` turns, where that is given."""
    said = [
        (
            turn["role"],
            *(normalised(turn.get(part) or "") for part in ("reasoning_content", "content")),
            turn.get("tool_calls"),
        )
        for turn in row.messages[:turns]
    ]
    return _digest([said, row.tools])


def _digest(value: Any) -> bytes:
    text = json.dumps(value, sort_keys=True)
    return hashlib.sha256(text.encode()).digest()[:12]


def of_split(rows: Sequence[GateRow], split: str) -> list[int]:
    """Indices of the rows of a split."""
    return [index for index, row in enumerate(rows) if row.split == split]


def normalised(text: str) -> str:
    """Without case, punctuation, runs of space, and compatibility forms of letters.

    >>> normalised("It's  ＦＩＮＥ, really!")
    'it s fine really'
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text)
    return " ".join(_PUNCTUATION.sub(" ", text.casefold()).split())


def shortened(text: str, width: int = 60) -> str:
    """One line of at most `width` letters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"
