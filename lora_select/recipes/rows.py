"""Rows as every tool can read them: the rendered text in pieces, each with whether it is learnt.

Tools render chat templates in ways of their own, and their labels then differ from what was measured: one learns the newline
after the end of a turn, one adds a sentence to each system message, one has no way to train on a tokenizer's own template. So
the template is rendered here, once, and each tool is handed the pieces in a format that it does not change.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select import models
from lora_select.data.intake import read_canonical
from lora_select.data.labels import render
from lora_select.data.labels.answers import Rendered
from lora_select.data.labels.render import Row
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import BaseModel, Dataset, write_text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Pieces = tuple[tuple[bool, str], ...]
"""`(learnt, text)`, in turns: not learnt first (it may be empty), learnt last."""


@final
@dataclass(frozen=True)
class Rows:
    """All texts that are trained on, in file order; `other_tokens` counts rows that a tool tokenises otherwise than the measurement did.

    That happens where a token spans the seam between prompt and answer, which no tool can see that tokenises them apart, and where a
    piece of reference text ends within a word.
    `longest` is the longest row in tokens. `validation` are training rows that the plan keeps from training, not among `train`.
    `task` holds the canonical rows of `train`, `validation` and `eval`, which the filter reads after the training.
    """

    train: tuple[Pieces, ...]
    eval: tuple[Pieces, ...]
    other_tokens: int
    longest: int
    validation: tuple[Pieces, ...] = ()
    task: Mapping[str, tuple[Row, ...]] = field(default_factory=dict)


def read(dataset: Dataset, folder: Path, base: BaseModel, kept: AbstractSet[str] = frozenset()) -> Rows:
    """The rows of both splits.

    Args:
        dataset: the record of the intake.
        folder: where its files are.
        base: its tokenizer renders the chat template.
        kept: ids of the training rows that the plan keeps for validation.
    """
    tokenizer = models.load_tokenizer(base.path)
    parts: dict[str, list[Pieces]] = {"train": [], "validation": [], "eval": []}
    task: dict[str, list[Row]] = {name: [] for name in parts}
    other, longest = 0, 0
    for split, file in (("train", dataset.train_file), ("eval", dataset.eval_file)):
        for row_id, row in read_canonical(folder / file.path):
            whole = tokenize(row_id, row, tokenizer, max_length=2**31)
            if whole.fault is not None:
                continue  # the profile has counted it
            longest = max(longest, whole.length)
            texts = pieces(row, tokenizer)
            part = "validation" if split == "train" and row_id in kept else split
            parts[part] += texts
            task[part].append(row)
            measured = [_trimmed(text.input_ids, text.label_mask) for text in whole.rows]
            other += measured != [tokens(text, tokenizer) for text in texts]
    train, validation, judging = (tuple(part) for part in parts.values())
    return Rows(train, judging, other, longest, validation, {name: tuple(rows) for name, rows in task.items()})


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """One JSON value a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def pieces(row: Row, tokenizer: "PreTrainedTokenizerBase") -> tuple[Pieces, ...]:
    """The texts of a row, each in turns of context and answer; what follows the last answer teaches nothing and is left out.

    One text where the chat template changes no earlier turn, else one for each turn that is learnt.
    """
    texts = render.samples(row, tokenizer)
    if render.is_text(row):
        return (((False, render.opening(tokenizer)), (True, texts[0].text)),)
    return tuple(_pieces(text) for text in texts)


def _pieces(sample: Rendered) -> Pieces:
    made: list[tuple[bool, str]] = []
    place = 0
    for low, high in sample.spans:
        made += [(False, sample.text[place:low]), (True, sample.text[low:high])]
        place = high
    return tuple(made)


def with_tokens(rows: Rows, added: Sequence[TokenRow], tokenizer: "PreTrainedTokenizerBase") -> Rows:
    """The rows, and after those that are trained on the text of token rows: reference text that is learnt beside the task."""
    made = tuple(_text(row, tokenizer) for row in added)
    other = sum(
        tokens(text, tokenizer) != _trimmed(row.input_ids, row.label_mask)
        for text, row in zip(made, added, strict=True)
    )
    return dataclasses.replace(rows, train=(*rows.train, *made), other_tokens=rows.other_tokens + other)


def _text(row: TokenRow, tokenizer: "PreTrainedTokenizerBase") -> Pieces:
    """What of a row is learnt and what is not, as text; a first token that opens no text is learnt with what follows, though it is no label."""
    ids, mask = _trimmed(row.input_ids, row.label_mask)
    mask = (mask[1] and ids[0] not in tokenizer.all_special_ids, *mask[1:])
    runs = [(learnt, [ids[at] for at, _ in run]) for learnt, run in groupby(enumerate(mask), key=lambda pair: pair[1])]
    texts = [(learnt, str(tokenizer.decode(run, clean_up_tokenization_spaces=False))) for learnt, run in runs]
    return tuple(texts) if not texts[0][0] else ((False, ""), *texts)


def tokens(made: Pieces, tokenizer: "PreTrainedTokenizerBase") -> tuple[tuple[int, ...], tuple[bool, ...]]:
    """Ids and label mask as a tool makes them that tokenises each piece by itself; the first token is no label."""
    ids: list[int] = []
    mask: list[bool] = []
    for learnt, text in made:
        found = tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        ids += found  # pyright: ignore[reportOperatorIssue]
        mask += [learnt] * len(found)  # pyright: ignore[reportArgumentType]
    return tuple(ids), (False, *mask[1:]) if mask else ()


def _trimmed(ids: Sequence[int], mask: Sequence[bool]) -> tuple[tuple[int, ...], tuple[bool, ...]]:
    end = max((i + 1 for i, learnt in enumerate(mask) if learnt), default=0)
    return tuple(ids[:end]), tuple(mask[:end])
