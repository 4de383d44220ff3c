"""Dataset formats: how each becomes canonical messages, and which one a row's columns are. No key is forgotten: see `convert_row`.

A canonical row is `{"messages": [...], "tools": [...] | None}`; :mod:`lora_select.data.labels.chat` says what a message holds.
"""

import difflib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, final

from lora_select.data.labels import pieces
from lora_select.data.labels.chat import TEXT_ROLE
from lora_select.data.reading import turns
from lora_select.data.reading.turns import RowError
from lora_select.errors import InputError

__all__ = [
    "FORMATS",
    "Converted",
    "RowError",
    "RowOptions",
    "check",
    "convert",
    "convert_row",
    "detect",
    "mapped",
    "sentences",
    "without_nulls",
]

Columns = Mapping[str, Any]
PROMPTS = ("prompt", "question", "query", "input")
ANSWERS = ("completion", "response", "answer", "output")
CHATS = ("conversations", "conversation")
SYSTEMS = ("system", "system_prompt")
TOOLS = ("tools", "functions")
MEDIA = ("image", "images", "audio", "audios", "video", "videos")


@final
@dataclass(frozen=True)
class RowOptions:
    """What the user says of the rows.

    `columns`: what the format calls a column -> what the file calls it. `ignore`: columns that are left out on purpose.
    `reasoning`: whether `reasoning_content` is learnt. `learn`: every answer of a row, or the last alone.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    ignore: frozenset[str] = frozenset()
    reasoning: Literal["keep", "drop"] = "keep"
    learn: Literal["all", "last"] = "all"


@final
@dataclass(frozen=True)
class Converted:
    """A canonical row; the keys that hold something and were not used; what was changed, in words that are equal for equal causes."""

    content: dict[str, Any]
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def mapped(row: Columns, options: RowOptions) -> dict[str, Any]:
    """The row under the format's own column names, without what the user ignores.

    Raises:
        InputError: a column that is mapped is not there.
    """
    missing = [given for given in options.columns.values() if given not in row]
    if missing:
        raise InputError(
            f"`dataset.columns` names {', '.join(missing)}; the columns are {', '.join(sorted(map(str, row))) or 'none'}"
        )
    taken = set(options.columns.values())
    kept = {key: value for key, value in row.items() if key not in options.ignore and key not in taken}
    return kept | {name: row[given] for name, given in options.columns.items()}


def detect(columns: Columns | Iterable[str]) -> str:
    """The format that a row is, by its columns; for preferences without pairs also by its values.

    Raises:
        InputError: none; names the columns and every format's. Or the row is of a kind that is not trained on.
    """
    present = set(columns)
    refused = _preferences(columns, present)
    if refused:
        raise InputError(refused)
    for name, (needed, _convert) in FORMATS.items():
        if all(present & set(choices) for choices in needed):
            return name
    wanted = sorted({choice for needed, _ in FORMATS.values() for choices in needed for choice in choices})
    near = {column: difflib.get_close_matches(str(column), wanted, n=1) for column in sorted(present, key=str)}
    hints = "; ".join(
        f"did you mean `{match[0]}` by `{column}`?" for column, match in near.items() if match and match[0] != column
    )
    known = "; ".join(f"{name} ({_needs(needed)})" for name, (needed, _) in FORMATS.items())
    raise InputError(
        f"the columns {', '.join(sorted(map(str, present))) or 'none'} are no known format"
        + (f"; {hints}" if hints else "")
        + f". Formats: {known}. For anything else set `dataset.columns`, for example {{prompt: q, completion: a}}"
    )


def check(name: str, columns: Iterable[str]) -> None:
    """Check that a named format has its columns.

    Raises:
        InputError: one is missing.
    """
    present = set(columns)
    if name not in FORMATS:
        raise InputError(f"`dataset.format` is {name!r}; it can be auto, {', '.join(FORMATS)}")
    missing = [choices for choices in FORMATS[name][0] if not present & set(choices)]
    if missing:
        raise InputError(
            f"`dataset.format` is {name}, which needs {_needs(missing)}; the columns are {', '.join(sorted(map(str, present)))}"
        )


def convert(name: str, row: Columns) -> dict[str, Any]:
    """A canonical row, with nothing ignored and all answers learnt.

    Raises:
        RowError: the row cannot be used; says why in a few words.
    """
    return convert_row(name, row, RowOptions()).content


def convert_row(name: str, row: Columns, options: RowOptions) -> Converted:
    """A canonical row, and what became of every key of the row.

    Args:
        name: one of `FORMATS`.
        row: the row as :func:`mapped` gives it.
        options: what the user says of the rows.

    Raises:
        RowError: the row cannot be used; says why in a few words. Nothing else, whatever the row holds.
    """
    try:
        reader = _Reader(row)
        content = FORMATS[name][1](reader)
        notes = list(reader.notes)
        if name != "text":
            turns.nothing_filled_in(content["messages"], content["tools"])
            notes += _choose(content["messages"], options)
            turns.check(content["messages"])
        turns.check_text(content)
    except RecursionError as error:
        raise RowError("nested too deeply") from error
    unused = tuple(key for key in reader.unused() if key not in options.ignore)
    return Converted(content, unused, tuple(dict.fromkeys(notes)))


def without_nulls(value: Any) -> Any:
    """The same value without keys that are null: in a table every struct has the fields of all, and null stands for "not there"."""
    if isinstance(value, Mapping):
        return {key: without_nulls(item) for key, item in value.items() if item is not None}
    return [without_nulls(item) for item in value] if isinstance(value, list | tuple) else value


def sentences(name: str, unused: Mapping[str, int], notes: Mapping[str, int]) -> tuple[str, ...]:
    """What became of keys and turns, one sentence each, the most frequent first."""
    ordered = sorted(unused.items(), key=lambda item: (-item[1], item[0]))
    keys = (f"`{key}` in {count} row{'s' * (count != 1)} is not used by format {name}" for key, count in ordered)
    return (
        *keys,
        *(
            f"{count} row{'s' * (count != 1)}: {note}"
            for note, count in sorted(notes.items(), key=lambda item: (-item[1], item[0]))
        ),
    )


class _Reader:
    """A row that remembers which of its keys were read, and what was said of it."""

    def __init__(self, row: Columns) -> None:
        self._row = row
        self._used: set[str] = set()
        self._unread: dict[str, None] = {}
        self.notes: list[str] = []

    def get(self, *names: str) -> Any:
        """The first of `names` that is there and not null; all of them count as read where they hold the same."""
        found = next((name for name in names if self._row.get(name) is not None), None)
        self._used.update(names if found is None else (found,))
        return None if found is None else self._row[found]

    def text(self, *names: str, may_miss: bool = False) -> str:
        """The same as text; numbers and truth values of tables are text."""
        value = self.get(*names)
        if value is None:
            if may_miss:
                return ""
            raise RowError(f"missing field {names[0]}")
        if isinstance(value, bool):
            return str(value).lower()
        if isinstance(value, int | float):
            return str(value)
        if not isinstance(value, str):
            raise RowError(f"field {names[0]} is no text")
        return value

    def messages(self, value: Any, name: str) -> list[dict[str, Any]]:
        """Turns as canonical messages; keys of turns that no message has are remembered as unused."""
        given = turns.parsed(value, name)
        if not isinstance(given, list) or not given:
            raise RowError(f"missing field {name}" if not given else f"field {name} is no list of messages")
        made = [turns.message(turn) for turn in given]
        for turn in given:
            self._unread |= {f"{name}[].{k}": None for k, v in turn.items() if k not in turns.TURN_KEYS and _holds(v)}
        if turns.partial_weight(given):
            self.notes.append("a turn's weight is neither 0 nor 1; it is learnt like any other")
        return made

    def unused(self) -> tuple[str, ...]:
        left = (str(key) for key, value in self._row.items() if key not in self._used and _holds(value))
        return (*left, *self._unread)


def _choose(messages: list[dict[str, Any]], options: RowOptions) -> list[str]:
    """Apply what the user says of reasoning and of which answers are learnt; says what was dropped."""
    said = []
    if options.reasoning == "drop":
        for turn in messages:
            thought = turn.pop("reasoning_content", None)
            if turn["role"] == "assistant" and turn["content"].lstrip().startswith("<think>"):
                thought, turn["content"] = pieces.split_thought(turn["content"])
                turn["content"] = turn["content"].lstrip()
            if thought:
                said.append("reasoning is dropped, as `dataset.reasoning` says")
    if options.learn == "last":
        answers = [turn for turn in messages if turn["role"] == "assistant"]
        for turn in answers[:-1]:
            turn["train"] = False
    return said


def _holds(value: Any) -> bool:
    return value is not None and value != "" and value != [] and value != {}


def _preferences(columns: Any, present: set[str]) -> str | None:
    if {"chosen", "rejected"} <= present:
        return (
            "these rows are preference pairs (`chosen`, `rejected`), as for DPO; preference pairs are not supported, answers are "
            "learnt: to learn the chosen ones set `dataset.columns: {completion: chosen}` and `dataset.ignore_columns: [rejected]`"
        )
    if {"preferred_output", "non_preferred_output"} <= present:
        return (
            "these rows are preference pairs (`preferred_output`, `non_preferred_output`), as for OpenAI's DPO; preference pairs are "
            "not supported, answers are learnt: write each input's messages with the preferred output as one row of `messages`"
        )
    label = columns.get("label") if isinstance(columns, Mapping) else None
    if present & {"prompt", "messages", *CHATS} and (
        isinstance(label, bool) or (isinstance(label, str) and label.strip().lower() in ("true", "false"))
    ):
        return (
            "these rows are judged answers (`label` true or false), as for KTO; they are not supported, since bad answers would be "
            "learnt too: keep the rows whose label is true and set `dataset.ignore_columns: [label]`"
        )
    return None


def _needs(needed: Iterable[tuple[str, ...]]) -> str:
    return ", ".join("/".join(choices) for choices in needed)


def _framed(row: _Reader, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """With the system prompt and the tools that stand beside the turns; images, sounds and films are refused by name."""
    for name in MEDIA:
        if _holds(row.get(name)):
            raise RowError(f"column {name}: only text is learnt")
    system = row.text(*SYSTEMS, may_miss=True)
    if system.strip() and not (messages and messages[0]["role"] == "system" and messages[0]["content"] == system):
        messages = [{"role": "system", "content": system}, *messages]
    return {"messages": messages, "tools": turns.tools(row.get(*TOOLS))}


def _messages(row: _Reader) -> dict[str, Any]:
    return _framed(row, row.messages(row.get("messages"), "messages"))


def _sharegpt(row: _Reader) -> dict[str, Any]:
    return _framed(row, row.messages(row.get(*CHATS), "conversations"))


def _history(row: _Reader) -> list[dict[str, Any]]:
    """Earlier turns: pairs of question and answer, or messages."""
    given = turns.parsed(row.get("history"), "history") or []
    if isinstance(given, list) and all(isinstance(turn, Mapping) for turn in given):
        return row.messages(given, "history") if given else []
    made = []
    for pair in given if isinstance(given, list) else [None]:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(isinstance(text, str) for text in pair):
            raise RowError("field history is no list of pairs")
        made += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    return made


def _alpaca(row: _Reader) -> dict[str, Any]:
    parts = (row.text("instruction"), row.text("context", may_miss=True), row.text("input", may_miss=True))
    prompt = "\n\n".join(part for part in parts if part.strip())
    return _pair(row, prompt, row.text("output", "response", "answer", "completion"))


def _prompt_completion(row: _Reader) -> dict[str, Any]:
    prompt, answer = _list(row.get(*PROMPTS), PROMPTS[0]), _list(row.get(*ANSWERS), ANSWERS[0])
    if isinstance(prompt, list) or isinstance(answer, list):
        return _conversational(row, prompt, answer)
    asked = row.text(*PROMPTS)
    more = row.text("input", may_miss=True) if row.get(*PROMPTS[:-1]) is not None else ""
    parts = (row.text("context", may_miss=True), asked, more) if asked.strip() else ()
    return _pair(row, "\n\n".join(part for part in parts if part.strip()), row.text(*ANSWERS))


def _list(value: Any, name: str) -> Any:
    """Messages, also those that a table holds as JSON text; any other text is text.

    Raises:
        RowError: a list of something else.
    """
    if isinstance(value, str) and value.lstrip().startswith('[{"') and '"content"' in value:
        try:
            value = turns.parsed(value, name)
        except RowError:
            return value
    if isinstance(value, list) and not (value and all(isinstance(turn, Mapping) for turn in value)):
        raise RowError(f"field {name} is no text" if value else f"missing field {name}")
    return value


def _conversational(row: _Reader, prompt: Any, answer: Any) -> dict[str, Any]:
    """Prompt and completion as messages: of the prompt nothing is learnt."""
    if isinstance(prompt, str):
        before = [{"role": "user", "content": prompt}]
    else:
        before = row.messages(prompt, "prompt")
    after = (
        [{"role": "assistant", "content": answer}] if isinstance(answer, str) else row.messages(answer, "completion")
    )
    before = [turn | {"train": False} if turn["role"] == "assistant" else turn for turn in before]
    return _framed(row, [*before, *after])


def _pair(row: _Reader, prompt: str, answer: str) -> dict[str, Any]:
    if not prompt.strip():
        raise RowError("empty prompt")
    asked = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
    return _framed(row, [*_history(row), *asked])


def _plain_text(row: _Reader) -> dict[str, Any]:
    text = row.text("text")
    if not text.strip():
        raise RowError("empty text")
    return {"messages": [{"role": TEXT_ROLE, "content": text}], "tools": None}


FORMATS: Mapping[str, tuple[tuple[tuple[str, ...], ...], Callable[[_Reader], dict[str, Any]]]] = {
    "messages": ((("messages",),), _messages),
    "sharegpt": ((CHATS,), _sharegpt),
    "alpaca": ((("instruction",), ("output", "response", "answer", "completion")), _alpaca),
    "prompt-completion": ((PROMPTS, ANSWERS), _prompt_completion),
    "text": ((("text",),), _plain_text),
}
"""Format -> the columns it needs (any one of each group) and its conversion; the first that fits is taken."""
