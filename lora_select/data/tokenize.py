"""From rows to token rows: which tokens are labels, what was cut, what was left out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lora_select.data import render
from lora_select.data.render import Row
from lora_select.data.tokens import TokenRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Tokenized:
    """A row after tokenising: `length` and `labels` before truncation, `row` after it (None: no label token left)."""

    row_id: str
    length: int
    labels: int
    row: TokenRow | None


def tokenize(row_id: str, row: Row, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Tokenized:
    """Tokenise one row; labels are the assistant turns with their end-of-turn tokens (all tokens of a text row).

    The whole text is tokenised once, and a token is a label when it begins inside an answer's characters: prefixes
    tokenised apart would disagree at their seams. The first token can never be predicted, so it is never a label.

    Args:
        row_id: the row's digest.
        row: a canonical row.
        tokenizer: a fast tokenizer (character offsets are needed).
        max_length: tokens kept, from the start.
    """
    text = render.render(row, tokenizer)
    spans = [(0, len(text))] if render.is_text(row) else answer_spans(row, tokenizer, text)
    encoded = tokenizer(text, add_special_tokens=render.is_text(row), return_offsets_mapping=True)
    ids = [int(token) for token in encoded["input_ids"]]  # pyright: ignore[reportArgumentType, reportCallIssue]
    offsets: Sequence[tuple[int, int]] = encoded["offset_mapping"]  # pyright: ignore[reportAssignmentType]
    mask = [index > 0 and end > start and _inside(start, spans) for index, (start, end) in enumerate(offsets)]
    kept = tuple(mask[:max_length])
    left = TokenRow(row_id, tuple(ids[:max_length]), kept) if any(kept) else None
    return Tokenized(row_id, len(ids), sum(mask), left)


def answer_spans(row: Row, tokenizer: "PreTrainedTokenizerBase", text: str) -> list[tuple[int, int]]:
    """Character ranges of the assistant turns in the rendered text, from the answer's first character to its turn's end.

    Found by rendering prefixes: before the turn with the generation prompt, and with the turn. A template's trailing
    whitespace after the end of a turn is no part of the answer.

    Raises:
        ValueError: the template rewrites earlier turns, so prefixes do not line up with the whole.
    """
    spans = []
    for index, message in enumerate(row["messages"]):
        if message["role"] != "assistant":
            continue
        opening = render.render(row, tokenizer, upto=index, prompt=True)
        closing = render.render(row, tokenizer, upto=index + 1)
        if not (text.startswith(opening) and text.startswith(closing)):
            raise ValueError(
                "the chat template changes earlier turns when later ones follow, so the answer cannot be located; "
                "keep only the last assistant turn of each row"
            )
        spans.append((len(opening), len(closing.rstrip("\n"))))
    return spans


def _inside(start: int, spans: Sequence[tuple[int, int]]) -> bool:
    return any(low <= start < high for low, high in spans)
