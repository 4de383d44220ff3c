"""General English prose that has nothing to do with the dataset, in chunks: what an adapter costs elsewhere is read off it."""

from typing import Any

from lora_select.data.labels.tokens import TokenRow
from lora_select.data.reading import samples

CHUNK_TOKENS = 128
CHARACTERS_PER_TOKEN = 12
"""More than any tokenizer packs into a token of English on average: a slice of this many holds a whole chunk."""


def reference_rows(tokenizer: Any, tokens: int) -> list[TokenRow]:
    """Chunks of the reference text, spread evenly over it; every token but the first is a label.

    Neighbouring sentences depend on each other, so the chunk and not the token is what an interval resamples.

    Args:
        tokenizer: the base model's.
        tokens: about how many in all; at least two chunks are made, because one chunk has no spread.

    Returns:
        `tokens // 128` rows of up to 128 tokens.
    """
    text = samples.reference_text()
    count = max(2, tokens // CHUNK_TOKENS)
    stride = len(text) // count
    rows = []
    for index in range(count):
        part = text[index * stride : index * stride + CHARACTERS_PER_TOKEN * CHUNK_TOKENS]
        ids = tuple(tokenizer(part, add_special_tokens=True)["input_ids"][:CHUNK_TOKENS])
        rows.append(TokenRow(f"reference-{index}", ids, (False, *[True] * (len(ids) - 1))))
    return rows
