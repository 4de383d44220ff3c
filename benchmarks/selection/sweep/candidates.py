"""What is swept: variants at sizes on targets, in the order in which they are run."""

import dataclasses

from lora_select.records import AdapterSpec, Constraints, LayerSpectra
from lora_select.selection.candidates import ALL_LINEAR, MLP_KINDS, MLP_ONLY, Candidate, target_groups
from lora_select.selection.findings import spec
from lora_select.variants import named

ATTENTION_ONLY = "attention-only"
REFERENCE = "lora-all-linear-r16"
SWEPT = (
    ("lora", ALL_LINEAR, 16),
    ("lora", MLP_ONLY, 16),
    ("eva", ALL_LINEAR, 16),
    ("lora_ga", ALL_LINEAR, 16),
    ("lora", ALL_LINEAR, 64),
    ("lora", ALL_LINEAR, 4),
    ("pissa", ALL_LINEAR, 16),
    ("rslora", ALL_LINEAR, 64),
    ("lora", ATTENTION_ONLY, 16),
    ("dora", ALL_LINEAR, 16),
    ("miss", ALL_LINEAR, 16),
    ("hira", ALL_LINEAR, 16),
    ("vera", ALL_LINEAR, 256),
    ("oft", ALL_LINEAR, 0),
    ("shira", ALL_LINEAR, 16),
    ("lora", ALL_LINEAR, 8),
)
"""Variant, targets, rank (0 where it has none)."""
NAMED = {f"{variant}-{targets}" + (f"-r{r}" if r else ""): (variant, targets, r) for variant, targets, r in SWEPT}
FREE = Constraints(None, False, None, True, 0, None, None, None, None, 100, None, {})
"""No constraint."""


def candidate(variant: str, targets: str, r: int, layers: tuple[LayerSpectra, ...]) -> Candidate | None:
    """The candidate on the model's layers; None where the names do not tell its targets apart (BERT calls half of them `dense`)."""
    groups = dict(target_groups(layers))
    if MLP_ONLY in groups:
        groups[ATTENTION_ONLY] = tuple(layer for layer in groups[ALL_LINEAR] if layer.kind not in MLP_KINDS)
    if targets not in groups:
        return None
    chosen = groups[targets]
    return Candidate(named(variant, r), targets, tuple(sorted({layer.kind for layer in chosen})), chosen)


def adapter(made: Candidate, rate: float) -> AdapterSpec:
    """What is built, at this rate."""
    return dataclasses.replace(spec(made, FREE), learning_rate=rate)
