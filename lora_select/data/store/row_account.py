"""What happened to every row that was read, by file and by reason; 16 bytes a row that is left out."""

import json
import sys
from array import array
from collections import Counter
from pathlib import Path

from lora_select.data.reading.raw import printable
from lora_select.records import RejectedRows

EXAMPLES = 5


class Ledger:
    """Rows seen and accepted by file, and the place and reason of each that is left out."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.seen: Counter[int] = Counter()
        self.accepted: Counter[int] = Counter()
        self._files, self._lines, self._reasons = array("i"), array("q"), array("i")
        self._known: dict[str, int] = {}

    def file(self, name: str) -> int:
        """The number of a file; names that a second source has too get a mark, so that a place is one place."""
        while name in self.names:
            name = f"{name}*"
        self.names.append(sys.intern(name))
        return len(self.names) - 1

    def reject(self, file: int, line: int, reason: str) -> None:
        """Count a row that is left out."""
        self._files.append(file)
        self._lines.append(line)
        self._reasons.append(self._known.setdefault(printable(reason), len(self._known)))

    def rejected(self) -> int:
        """How many rows are left out so far."""
        return len(self._files)

    def first(self, since: int = 0) -> tuple[str, int, str]:
        """Place and reason of the first row left out after `since` others."""
        return self.names[self._files[since]], self._lines[since], list(self._known)[self._reasons[since]]

    def summary(self) -> tuple[RejectedRows, ...]:
        """Rejected rows by reason, the most frequent first, examples in the order of files and lines."""
        counts: Counter[str] = Counter()
        places: dict[str, list[str]] = {}
        reasons = list(self._known)
        for index in self._order():
            reason = reasons[self._reasons[index]]
            counts[reason] += 1
            if counts[reason] <= EXAMPLES:
                places.setdefault(reason, []).append(f"{self.names[self._files[index]]}:{self._lines[index]}")
        ordered = sorted(counts, key=lambda reason: (-counts[reason], reason))
        return tuple(RejectedRows(reason, counts[reason], tuple(places[reason])) for reason in ordered)

    def write(self, path: Path) -> None:
        """One JSON object a rejected row, in the order of files and lines."""
        reasons = list(self._known)
        with path.open("w", encoding="utf-8") as stream:
            for index in self._order():
                place = {"file": self.names[self._files[index]], "line": self._lines[index]}
                line = json.dumps({**place, "reason": reasons[self._reasons[index]]}, ensure_ascii=False)
                stream.write(line + "\n")

    def check(self) -> None:
        """Every row that was read is kept or counted.

        Raises:
            RuntimeError: one is lost; this is a fault of the library, not of the data.
        """
        left: Counter[int] = Counter(self._files)
        for file, seen in self.seen.items():
            if seen != self.accepted[file] + left[file]:
                raise RuntimeError(
                    f"{self.names[file]}: {seen} rows were read, {self.accepted[file]} kept and {left[file]} counted as left out"
                )

    def _order(self) -> "list[int]":
        import numpy as np

        names = np.argsort(np.argsort(np.array(self.names))) if self.names else np.zeros(0, np.int64)
        files = names[np.frombuffer(self._files, np.intc)] if len(self._files) else np.zeros(0, np.int64)
        return np.lexsort((np.array(self._reasons), np.array(self._lines), files)).tolist()
