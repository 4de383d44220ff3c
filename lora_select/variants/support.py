"""What the matrix says of a variant, in sentences: read by the selector, without torch."""

import functools

from lora_select.records import Constraints
from lora_select.variants import matrix as cells
from lora_select.variants.matrix import REFUSED, WORKS, Cells

HELD = ("fp32", "nf4", "int8")


@functools.cache
def matrix() -> Cells:
    """The matrix that ships with the package."""
    return cells.read()


def faults(variant: str, constraints: Constraints, architecture: str | None = None) -> tuple[str, ...]:
    """Why the variant was seen to fail under these constraints; empty where it works or was never run.

    `architecture` is that of the base model's config: GPT-2's layers are `Conv1D`, which many adapters do not take.

    A cell that a rule of the variant itself refused on the tiny models' sizes is not evidence for other sizes, so only what
    plain training, saving and merging on Llama say is used, of a variant that trains there in some way. Only the first failure is
    told: the others follow from it.
    """
    row = matrix().get(variant, {})
    for key, words in _asked(constraints, architecture or ""):
        cell = row.get(key, "")
        if cell.startswith(REFUSED) and any(row.get(f"llama/{held}/train") == WORKS for held in HELD):
            return (f"measured: {variant} {words}: {cell.removeprefix(REFUSED)}",)
    return ()


def _asked(constraints: Constraints, architecture: str) -> list[tuple[str, str]]:
    quantized_base, zero_stage = constraints.quantized_base, constraints.zero_stage
    asked = [("gpt2/fp32/train", "does not train on GPT-2's layers")] if architecture.startswith("GPT2") else []
    if quantized_base:
        asked += [
            (f"llama/{quantized_base}/train", f"does not train on a {quantized_base} base"),
            (f"llama/{quantized_base}/reload", f"does not reload on a {quantized_base} base"),
        ]
    split = 2 if zero_stage == 1 else zero_stage  # stage 1 splits a part of what stage 2 splits, and was not measured
    held, words = (f"{quantized_base}-", f" on a {quantized_base} base") if quantized_base else ("", "")
    asked += [
        (f"llama/{held}zero{split}/train", f"does not train under ZeRO-{split}{words} as in one process"),
        (f"llama/{held}zero{split}/save", f"is not saved whole under ZeRO-{split}{words}"),
    ]
    if constraints.must_merge:
        asked.append(("llama/fp32/merge", "does not merge"))
    return asked
