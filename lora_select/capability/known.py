"""What the matrix says of a variant, in sentences: read by the selector, without torch."""

import functools

from lora_select.capability import cells
from lora_select.capability.cells import REFUSED, WORKS, Cells


@functools.cache
def matrix() -> Cells:
    """The matrix that ships with the package."""
    return cells.read()


def faults(variant: str, *, quantized_base: str | None, zero_stage: int, must_merge: bool) -> tuple[str, ...]:
    """Why the variant was seen to fail in a setting; empty where it works or was never run.

    A cell that a rule of the variant itself refused on the tiny models' sizes is not evidence for other sizes, so only what
    plain training, saving and merging on Llama say is used.
    """
    row = matrix().get(variant, {})
    found = []
    for key, words in _asked(quantized_base, zero_stage, must_merge):
        cell = row.get(key, "")
        if cell.startswith(REFUSED) and row.get("llama/fp32/train") == WORKS:
            found.append(f"measured: {variant} {words}: {cell.removeprefix(REFUSED)}")
    return tuple(found)


def _asked(quantized_base: str | None, zero_stage: int, must_merge: bool) -> list[tuple[str, str]]:
    asked = []
    if quantized_base:
        asked += [
            (f"llama/{quantized_base}/train", f"does not train on a {quantized_base} base"),
            (f"llama/{quantized_base}/reload", f"does not reload on a {quantized_base} base"),
        ]
    if zero_stage in {2, 3}:
        asked += [
            (f"llama/zero{zero_stage}/train", f"does not train under ZeRO-{zero_stage} as in one process"),
            (f"llama/zero{zero_stage}/save", f"is not saved whole under ZeRO-{zero_stage}"),
        ]
    if must_merge:
        asked.append(("llama/fp32/merge", "does not merge"))
    return asked
