"""Rows as they were found -> canonical rows, each by the format that its columns are."""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lora_select.data.reading import formats
from lora_select.data.reading.raw import RawRow, printable
from lora_select.errors import InputError
from lora_select.records.digests import canonical

SAMPLE = 1000
"""Rows of a file from which its format is settled."""


@dataclass(frozen=True)
class Canonical:
    """A usable row: its digest, the digest of its prompt, and its messages and tools as canonical JSON (`tools` may be empty)."""

    row_id: str
    prompt_id: str
    messages: str
    tools: str


class Conversion:
    """Converts the rows of a source; each file has a format, which most of its first rows agree on."""

    def __init__(self, wanted: str, options: formats.RowOptions, *, alone: bool) -> None:
        """What is asked for.

        Args:
            wanted: `auto`, or the one format of all files.
            options: what the user says of the rows.
            alone: the source is one file, so that rows of no known format are an error and not counted.
        """
        self._wanted, self._options, self._alone = wanted, options, alone
        self._unused: dict[str, Counter[str]] = {}
        self._notes: Counter[str] = Counter()
        self._format: str | None = None if wanted == "auto" else wanted
        self._known: dict[frozenset[str], str | None] = {}
        self._used: dict[str, Counter[str]] = {}
        self._checked = False

    def settle(self, rows: Sequence[RawRow]) -> None:
        """Settle the format of the file that these rows begin.

        Raises:
            InputError: it is the only file and its rows are of no known format.
        """
        readable = [row for row in rows if row.fault is None]
        if not readable:
            return
        mapped = [values for row in readable if not isinstance(values := self._mapped(row), str)]
        if not mapped:
            formats.mapped(readable[0].values, self._options)
        if self._wanted != "auto":
            if not self._checked:
                formats.check(self._wanted, mapped[0])
                self._checked = True
            return
        self._known.clear()
        self._format = None
        found = Counter(name for values in mapped if (name := self._detect(values)) is not None)
        if found:
            self._format = found.most_common(1)[0][0]
        elif self._alone:
            formats.detect(mapped[0])

    def convert(self, row: RawRow) -> Canonical | str:
        """The canonical row, or the reason why it is left out."""
        if row.fault is not None:
            return row.fault
        values = self._mapped(row)
        if isinstance(values, str):
            return values
        name = self._of(values)
        if name is None:
            return self._why_unknown(values)
        try:
            converted = formats.convert_row(name, values, self._options)
            made = canonical_row(converted.content)
        except formats.RowError as error:
            return str(error)
        except (TypeError, ValueError, RecursionError) as error:
            return _why_no_json(error)
        self._used.setdefault(row.file, Counter())[name] += 1
        self._unused.setdefault(name, Counter()).update(converted.unused)
        self._notes.update(converted.notes)
        return made

    def notes(self) -> tuple[str, ...]:
        """What became of keys and turns, one sentence each with its count."""
        keys = [formats.sentences(name, unused, {}) for name, unused in sorted(self._unused.items())]
        said = (*(sentence for found in keys for sentence in found), *formats.sentences("", {}, self._notes))
        return tuple(printable(sentence) for sentence in said)

    def of_file(self, name: str) -> str:
        """The formats of the rows of a file, the most frequent first."""
        return ", ".join(found for found, _ in self._used.get(name, Counter()).most_common())

    def used(self) -> Counter[str]:
        """Rows by format."""
        return sum(self._used.values(), Counter())

    def _mapped(self, row: RawRow) -> Mapping[str, Any] | str:
        """The row under the format's own column names, or why it has none."""
        values = _without_nan(formats.without_nulls(row.values) if row.nulls_filled else row.values)
        if not self._options.columns and not self._options.ignore:
            return values
        try:
            return formats.mapped(values, self._options)
        except InputError:
            missing = [given for given in self._options.columns.values() if given not in values]
            return f"no column {', '.join(missing)}"

    def _of(self, values: Mapping[str, Any]) -> str | None:
        if self._wanted != "auto":
            return self._wanted
        found = self._detect(values)
        if found is None and self._format is not None:
            wanted = {column for choices in formats.FORMATS[self._format][0] for column in choices}
            found = self._format if wanted & set(values) else None  # then the row lacks another column, which is said
        return found

    def _detect(self, values: Mapping[str, Any]) -> str | None:
        present = frozenset(key for key, value in values.items() if value is not None)
        if present not in self._known:
            if len(self._known) > 10_000:  # rows whose columns are all different
                self._known.clear()
            self._known[present] = self._fitting({key: value for key, value in values.items() if value is not None})
        return self._known[present]

    def _fitting(self, present: Mapping[str, Any]) -> str | None:
        try:
            found = formats.detect(present)
        except InputError:
            return None
        if self._format is None:
            return found
        try:
            formats.check(self._format, present)
        except InputError:
            return found
        return self._format

    def _why_unknown(self, values: Mapping[str, Any]) -> str:
        try:
            formats.detect(values)
        except InputError as error:
            said = str(error)
            if not said.startswith("the columns"):
                return said.partition(";")[0][:160]
        return f"columns {', '.join(sorted(map(str, values))[:6]) or 'none'} are no known format"


_IN_ORDER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def canonical_row(content: Mapping[str, Any]) -> Canonical:
    """The digests of a converted row (of JSON with sorted keys) and its JSON, in the row's own order of keys.

    Raises:
        TypeError: a value is no JSON.
        ValueError: a number is NaN or infinite, or a text holds a lone surrogate.
    """
    messages, tools = content["messages"], content.get("tools")
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    turns, of_tools = [canonical(message) for message in messages], canonical(tools) if tools else ""
    whole = _listed(turns)
    prompt = _listed(turns[:last]) if last else whole
    return Canonical(
        _digest(whole, of_tools), _digest(prompt, of_tools), _in_order(messages), _in_order(tools) if tools else ""
    )


def _listed(turns: Sequence[str]) -> str:
    """The canonical JSON of a list of what is canonical JSON."""
    return f"[{','.join(turns)}]"


def _in_order(value: Any) -> str:
    """The arguments of a call are learnt in the order of the row."""
    return _IN_ORDER(value)


def named(conversions: Iterable[Conversion]) -> str:
    """The formats of all rows, the most frequent first."""
    total: Counter[str] = sum((item.used() for item in conversions), Counter())
    return ", ".join(name for name, _ in sorted(total.items(), key=lambda item: (-item[1], item[0])))


def _digest(messages: str, tools: str) -> str:
    """As of the row `{"messages": ..., "tools": ...}` in canonical JSON."""
    return hashlib.sha256(f'{{"messages":{messages},"tools":{tools or "null"}}}'.encode()).hexdigest()


def _without_nan(values: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with NaN, which pandas writes where a value is missing, as None."""
    if any(isinstance(value, float) and math.isnan(value) for value in values.values()):
        return {key: None if isinstance(value, float) and math.isnan(value) else value for key, value in values.items()}
    return values


def _why_no_json(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "half an emoji (a lone surrogate)"
    if isinstance(error, RecursionError):
        return "nested too deeply"
    if "Out of range float" in str(error):
        return "a number that is NaN or infinite"
    if "digits" in str(error):
        return "a number of over 4300 digits"
    return " ".join(f"a value that is no JSON ({error})".split())[:120]
