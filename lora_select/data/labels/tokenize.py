"""From rows to token rows: which tokens are labels, what was cut, what was left out, and the invariant that every row keeps."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lora_select.data.labels import chat, render
from lora_select.data.labels.answers import Rendered, Span
from lora_select.data.labels.chat import UnusableRowError
from lora_select.data.labels.render import Row
from lora_select.data.labels.tokens import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokenized:
    """A row after tokenising: `length` (of its longest text) and `labels` before truncation, `rows` after it.

    `rows` has one entry where no turn changes another in the chat template, else several; it is empty where no label token is
    left within the length, or where the row is unusable, which `fault` says. `notes` say what is written otherwise than the
    row has it, or is not as it should be, in words that are equal for equal causes.
    """

    row_id: str
    length: int
    labels: int
    rows: tuple[TokenRow, ...]
    fault: str | None = None
    notes: tuple[str, ...] = ()

    @property
    def row(self) -> TokenRow | None:
        """The only token row, None where there is none.

        Raises:
            ValueError: there are several, one a turn.
        """
        if len(self.rows) > 1:
            raise ValueError(f"row {self.row_id} is learnt in {len(self.rows)} texts; use `rows`")
        return self.rows[0] if self.rows else None


def tokenize(row_id: str, row: Row, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Tokenized:
    """Tokenise one row; labels are the learnt turns with their end tokens (all tokens of a text row).

    A text is tokenised whole: prefixes tokenised apart would disagree at their seams. A token is a label when it holds
    a character of an answer, also where it begins before the answer. The first token can never be predicted, so it is never a
    label. What the labels must be is asserted for each row; a row that breaks it has a fault and no token rows.

    Args:
        row_id: the row's digest.
        row: a canonical row.
        tokenizer: a fast tokenizer (character offsets are needed).
        max_length: tokens kept, from the start; plain text is cut into pieces of this length, of which nothing is lost.

    Raises:
        ValueError: the tokenizer has no character offsets.
    """
    if not tokenizer.is_fast:
        raise ValueError("the tokenizer is a slow one without character offsets; bring its tokenizer.json")
    try:
        texts = render.samples(row, tokenizer)
        made = [_tokens(text, render.is_text(row), tokenizer) for text in texts]
    except UnusableRowError as error:
        return Tokenized(row_id, 0, 0, (), fault=str(error))
    cut = (
        _in_pieces(*made[0][:2], max_length)
        if render.is_text(row)
        else [(i[:max_length], m[:max_length]) for i, m, _ in made]
    )
    kept = [TokenRow(row_id, tuple(ids), tuple(mask)) for ids, mask in cut]
    return Tokenized(
        row_id,
        length=max(len(ids) for ids, _, _ in made),
        labels=sum(sum(mask) for _, mask, _ in made),
        rows=tuple(row for row in kept if any(row.label_mask)),
        notes=_notes(row, texts, [seam for _, _, seam in made], tokenizer),
    )


def _tokens(
    sample: Rendered, is_text: bool, tokenizer: "PreTrainedTokenizerBase"
) -> tuple[list[int], list[bool], bool]:
    """Ids, label mask, and whether an answer's first token begins before the answer.

    Raises:
        UnusableRowError: the labels do not give the answers back.
    """
    try:
        encoded: Any = tokenizer(sample.text, add_special_tokens=is_text, return_offsets_mapping=True)
    except (UnicodeError, TypeError) as error:
        raise UnusableRowError("holds half a character (a lone surrogate)") from error
    ids = [int(token) for token in encoded["input_ids"]]
    offsets: Sequence[Span] = encoded["offset_mapping"]
    if is_text:
        return ids, [index > 0 and end > start for index, (start, end) in enumerate(offsets)], False
    mask, seam = [False] * len(ids), False
    for low, high in sample.spans:
        first, after = _range(offsets, low, high)
        if first == after or first == 0:
            raise UnusableRowError("no token of the answer can be learnt")
        mask[first:after] = [True] * (after - first)
        seam |= offsets[first][0] < low
        _check(sample.text[low:high], ids[first:after], tokenizer)
    return ids, mask, seam


def _in_pieces(ids: list[int], mask: list[bool], max_length: int) -> list[tuple[list[int], list[bool]]]:
    """Pieces that overlap by one token, which is a label in the first of the two only: every label stays one."""
    step = max(1, max_length - 1)
    starts = range(0, max(1, len(ids) - 1), step)
    return [(ids[s : s + max_length], [False, *mask[s + 1 : s + max_length]]) for s in starts]


def _range(offsets: Sequence[Span], low: int, high: int) -> tuple[int, int]:
    """The tokens that hold a character of `low` to `high`, and all between them: some tokenizers give white space no width."""
    inside = [index for index, (start, end) in enumerate(offsets) if start < high and end > low and end > start]
    return (inside[0], inside[-1] + 1) if inside else (0, 0)


def _check(text: str, ids: list[int], tokenizer: "PreTrainedTokenizerBase") -> None:
    """The labels decode to the answer and its end; only white space and what a seam's token brings along may differ.

    Raises:
        UnusableRowError: they do not.
    """
    unknown = tokenizer.unk_token_id
    if unknown is not None and unknown in ids:
        raise UnusableRowError("the tokenizer has no token for a character of the answer")
    back = str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
    if not _bare(back).endswith(_bare(text)):
        raise UnusableRowError("the tokens of the answer do not give its text back")


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def _notes(
    row: Row, texts: Sequence[Rendered], seams: Sequence[bool], tokenizer: "PreTrainedTokenizerBase"
) -> tuple[str, ...]:
    if render.is_text(row):
        return () if texts[0].stops else (NO_STOP,)
    template = chat.chat_of(tokenizer)
    said = list(chat.departures(template.form(row))) if template.template else []
    said += [NO_STOP] if not all(text.stops for text in texts) else []
    said += [SEAM] if any(seams) else []
    said += sorted(frozenset().union(*(text.changed for text in texts)))
    said += [SEVERAL] if len(texts) > 1 else []
    return tuple(said)


NO_STOP = "the answer ends in no end token, and the tokenizer has none: the model will never learn to stop"
SEAM = (
    "the first token of the answer begins in the chat template's opening, which ends in white space: generation starts after "
    "it, where no answer was learnt; take the white space out of the template's opening"
)
SEVERAL = "the chat template changes earlier turns, so each turn is learnt in a text of its own"
