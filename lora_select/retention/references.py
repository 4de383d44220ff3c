"""Reference text: what the base model should still know. Each set is split into text that gives second moments and text that judges.

Sets: `prose` (Python's language reference), `code` (Python's standard library), `self` (sampled from the base model itself: needs no data), a file or a
folder in any dataset format, a hub id.
"""

import functools
import hashlib
import json
import random
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.data.general_text import CHARACTERS_PER_TOKEN, CHUNK_TOKENS
from lora_select.data.intake import intake, read_canonical
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.data.likeness import grams
from lora_select.data.reading import samples
from lora_select.errors import InputError
from lora_select.records import BaseModel

PROSE, CODE, SELF, USER = "prose", "code", "self", "user"
EMBEDDED = (PROSE, CODE, SELF)
DECIDING = 8
"""Units of each giving set that the decision reads; they neither give moments nor judge."""
LEAST_ROWS = 24
MOST_GIVING, MOST_JUDGING = 4000, 400
"""Rows of a user's reference that are read into either half; the others are counted."""
MOST_TOKENS = 512
"""Of one row of a user's own reference; what is longer is cut and counted."""
GRID = 64
"""Places along a text are this many, or 4, 16, ... times as many, so that no part meets another, nor the chunks of `data.general_text`."""
MOST_REPLAYED = 4 * GRID
"""Rows of one set that training replays: shorter pieces of an embedded text would say little."""
LEAK_SHARE = 0.5
COMMON = 0.05
"""n-grams that more of the task's rows hold are its template, not its content."""


@final
@dataclass(frozen=True)
class ReferenceSet:
    """Text that gives second moments, text that the decision reads, text that judges: three parts without a common row.

    A set that only judges has neither `give` nor `deciding`. `kind` is `prose`, `code`, `self`, or `user`.
    """

    name: str
    kind: str
    give: tuple[TokenRow, ...]
    deciding: tuple[TokenRow, ...]
    judging: tuple[TokenRow, ...]
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> tuple[TokenRow, ...]:
        """Of all three parts."""
        return (*self.give, *self.deciding, *self.judging)

    @property
    def digest(self) -> str:
        """SHA-256 over the token ids of all parts."""
        parts = [[row.input_ids for row in part] for part in (self.give, self.deciding, self.judging)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@final
@dataclass(frozen=True)
class Sizes:
    """Tokens that all giving sets together give, and units of each set that judge."""

    give_tokens: int = 8192
    judging: int = 24


def gather(
    giving: Sequence[str],
    judging: Sequence[str],
    base: BaseModel,
    tokenizer: Any,
    *,
    sizes: Sizes,
    seed: int,
    model: Callable[[], Any],
    cache: Path,
) -> tuple[ReferenceSet, ...]:
    """The reference sets, giving ones first.

    Args:
        giving: sets that give second moments and judge, on other text.
        judging: sets that only judge; at least one must be of a kind that gives nothing.
        base: names the base model.
        tokenizer: the base model's.
        sizes: how much text.
        seed: of splits and samples.
        model: the base model, loaded; asked for only where `self` is not cached.
        cache: where what the model sampled is kept.

    Raises:
        InputError: no giving set, a set named twice, no judging set of another kind, or a source that cannot be read.
    """
    names = [*giving, *judging]
    if not giving:
        raise InputError("`retention.references` is empty; name at least one set, such as prose or self")
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise InputError(
            f"the reference set {twice[0]} is named twice; what gives second moments judges on other rows by itself"
        )
    if not set(judging) - set(giving):
        raise InputError(
            "no reference set only judges, so nothing would show what happens to text of another kind; name one in `retention.judges`"
        )
    each = -(-sizes.give_tokens // len(giving))
    return tuple(
        _set(name, each if name in giving else 0, base, tokenizer, sizes.judging, seed, model, cache) for name in names
    )


def replayed(
    names: Sequence[str],
    count: int,
    base: BaseModel,
    tokenizer: Any,
    *,
    seed: int,
    longest: int,
    model: Callable[[], Any],
    cache: Path,
) -> tuple[list[TokenRow], dict[str, int], int]:
    """Reference text for the training itself, of the part that gives: none of it decides or judges.

    Args:
        names: sets that give, in turn.
        count: rows; where the sets have fewer, they come again.
        base: the base model.
        tokenizer: the base model's.
        seed: of splits and samples.
        longest: rows are cut to so many tokens.
        model: the base model, loaded; asked for only where `self` is not cached.
        cache: where what the model sampled is kept.

    Returns:
        The rows, how many are of each set, and how many are different.

    Raises:
        InputError: a source that cannot be read or is too small.
    """
    each = min(MOST_REPLAYED, -(-count // len(names)))
    rows: list[tuple[str, TokenRow]] = []
    for name in names:
        tokens = each * (CHUNK_TOKENS if name in EMBEDDED else MOST_TOKENS)
        rows += [(name, row) for row in _set(name, tokens, base, tokenizer, LEAST_ROWS, seed, model, cache).give[:each]]
    distinct = min(count, len(rows))
    taken = [rows[index % len(rows)] for index in range(count)]
    made = [
        TokenRow(f"replay-{index}-{row.row_id}", row.input_ids[:longest], row.label_mask[:longest])
        for index, (_, row) in enumerate(taken)
    ]
    return made, dict(Counter(name for name, _ in taken)), distinct


def refuse_unusable(
    giving: Sequence[str],
    judging: Sequence[str],
    base: BaseModel,
    tokenizer: Any,
    task: Sequence[TokenRow],
    *,
    sizes: Sizes,
    seed: int,
) -> list[ReferenceSet]:
    """What can be known of the sets without the base model, so before a training: that they can be read, and hold none of the task's rows.

    Returns:
        The sets, without those that the base model samples itself.

    Raises:
        InputError: as of :func:`gather` and :func:`refuse_leaks`.
    """

    def none() -> Any:
        raise AssertionError("no set here is sampled from the model")

    each = -(-sizes.give_tokens // len(giving))
    made = [
        _set(name, each if name in giving else 0, base, tokenizer, sizes.judging, seed, none, Path())
        for name in (*giving, *judging)
        if name != SELF
    ]
    refuse_leaks(made, task)
    return made


def _set(
    name: str,
    tokens: int,
    base: BaseModel,
    tokenizer: Any,
    units: int,
    seed: int,
    model: Callable[[], Any],
    cache: Path,
) -> ReferenceSet:
    chunks = -(-tokens // CHUNK_TOKENS)
    if name == PROSE:
        parts = _spaced(samples.reference_text(), tokenizer, chunks, units, PROSE)
    elif name == CODE:
        parts = _spaced(standard_library(), tokenizer, chunks, units, CODE)
    elif name == SELF:
        from lora_select.retention.self_text import sampled

        rows = sampled(base, tokenizer, chunks + DECIDING + units, seed=seed, model=model, cache=cache)
        parts = rows[:chunks], rows[chunks : chunks + DECIDING], rows[chunks + DECIDING :]
    else:
        return _from_user(name, tokens, tokenizer, units, seed)
    give, deciding, judging = parts
    return ReferenceSet(name, name, tuple(give), tuple(deciding) if tokens else (), tuple(judging))


Parts = tuple[Sequence[TokenRow], Sequence[TokenRow], Sequence[TokenRow]]


def _spaced(text: str, tokenizer: Any, give: int, units: int, name: str) -> Parts:
    """Chunks in turn along a text: judging ones where `data.general_text` has its own, giving ones half way between, deciding ones after."""
    count = GRID
    while count < max(give, units):
        count *= 4
    stride = len(text) // count

    def chunk(index: int, shift: float, most: int, part: str) -> TokenRow:
        start = int((index + shift) * stride)
        piece = text[start : start + min(stride // 4, CHARACTERS_PER_TOKEN * CHUNK_TOKENS)]
        ids = tuple(tokenizer(piece, add_special_tokens=True)["input_ids"][:most])
        return TokenRow(f"{name}-{part}-{index}", ids, (False, *[True] * (len(ids) - 1)))

    def spread(number: int) -> list[int]:
        return [index * count // number for index in range(number)]

    return (
        [chunk(index, 0.5, CHUNK_TOKENS, "give") for index in spread(give)] if give else [],
        [chunk(index, 0.75, CHUNK_TOKENS, "decide") for index in spread(min(DECIDING, count))],
        [chunk(index, 0.0, CHUNK_TOKENS, "judge") for index in spread(units)],
    )


@functools.cache
def standard_library() -> str:
    """Source text of Python's own standard library, modules in a fixed random order, about a million characters."""
    folder = Path(sysconfig.get_path("stdlib"))
    files = sorted(file for file in folder.glob("*.py") if file.stat().st_size < 200_000)
    random.Random(0).shuffle(files)
    texts: list[str] = []
    for file in files:
        try:
            texts.append(file.read_text(encoding="utf-8"))
        except UnicodeDecodeError:
            continue
        if sum(map(len, texts)) > 1_000_000:
            break
    return "\n\n".join(texts)


def _from_user(source: str, tokens: int, tokenizer: Any, units: int, seed: int) -> ReferenceSet:
    """Rows of a file, a folder or the hub in any dataset format; rows of one prompt stay in one part."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            dataset = intake(
                source=source,
                name="reference",
                folder=Path(folder),
                eval_fraction=0.5,
                max_train_rows=MOST_GIVING,
                max_eval_rows=MOST_JUDGING,
                split_seed=seed,
            )
        except InputError as error:
            reason = str(error).replace("`dataset.source`", "`retention.references`").partition(": bring")[0]
            raise InputError(f"reference {source}: {reason}; a reference needs {LEAST_ROWS} usable rows") from error
        first = list(read_canonical(Path(folder) / dataset.train_file.path))
        second = list(read_canonical(Path(folder) / dataset.eval_file.path))
    notes = [f"{item.count} rows left out: {item.reason}" for item in dataset.rejected]
    rows = {row_id: _row(row_id, row, tokenizer, notes) for row_id, row in (*first, *second)}
    give_from = [rows[row_id] for row_id, _ in first if rows[row_id] is not None]
    rest = [rows[row_id] for row_id, _ in second if rows[row_id] is not None]
    deciding = rest[: min(DECIDING, len(rest) // 3)] if tokens else []
    judging = rest[len(deciding) : len(deciding) + units]
    if len(give_from) + len(rest) < LEAST_ROWS or (tokens and len(deciding) < 2) or len(judging) < 2:
        raise InputError(
            f"reference {source} has {len(give_from) + len(rest)} usable rows; {LEAST_ROWS} are needed to give, decide and judge apart: add "
            "rows, or name another set"
        )
    give: list[TokenRow] = []
    for row in give_from:
        if sum(len(one.input_ids) for one in give) >= tokens:
            break
        give.append(row)  # pyright: ignore[reportArgumentType]
    cut = sum(note == "cut" for note in notes)
    said = [note for note in notes if note != "cut"] + (
        [f"{cut} rows are longer than {MOST_TOKENS} tokens and are cut"] if cut else []
    )
    return ReferenceSet(source, USER, tuple(give), tuple(deciding), tuple(judging), tuple(said))  # pyright: ignore[reportArgumentType]


def _row(row_id: str, row: Any, tokenizer: Any, notes: list[str]) -> TokenRow | None:
    made = tokenize(row_id, row, tokenizer, MOST_TOKENS)
    if made.length > MOST_TOKENS:
        notes.append("cut")
    return made.rows[-1] if made.rows else None  # of several texts of a row the last one holds all its turns


def refuse_leaks(sets: Sequence[ReferenceSet], task: Sequence[TokenRow]) -> None:
    """Reference text that holds the task's rows would keep the adapter from what it was trained for.

    A reference row leaks when it is a task row, or when at least half of its 12-grams of tokens are in the task's rows; n-grams that
    more than 5 % of the task's rows hold are its template and do not count.

    Raises:
        InputError: names the set and the rows.
    """
    known = {row.row_id for row in task} | {row.input_ids for row in task}
    words = grams.index(_words(row) for one in sets for row in one.rows)
    times = grams.counts(words, map(_words, task))
    most = max(2, int(COMMON * len(task)))
    for one in sets:
        leaking = [
            row.row_id
            for row in one.rows
            if row.row_id in known
            or row.input_ids in known
            or grams.share(_words(row), words, times, most)[0] >= LEAK_SHARE
        ]
        if leaking:
            listed = ", ".join(leaking[:5])
            raise InputError(
                f"reference {one.name} holds {len(leaking)} rows of the task's training data ({listed}); what is in both cannot be kept and "
                "learnt at once: take them out of the reference"
            )


def _words(row: TokenRow) -> str:
    """The row as text whose words are its tokens."""
    return " ".join(map(str, row.input_ids))
