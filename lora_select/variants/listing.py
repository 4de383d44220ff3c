"""The catalogue for the user's model and setting."""

import difflib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, final

from lora_select import models
from lora_select.errors import InputError
from lora_select.records import Constraints
from lora_select.variants import CANDIDATES, VARIANTS, offered, support
from lora_select.variants.base import Context, Variant

HEADS = ("lm_head", "embed_out", "score", "classifier")
DEFAULT_RANK = 16
DIRECTIONS = 32
"""Activation directions that the spectral pass keeps by default."""


@final
@dataclass(frozen=True)
class Line:
    """One variant: its size, trained parameters, cost next to LoRA (None where nobody measured it), what rules it out."""

    name: str
    size: str
    parameters: int
    time: float | None
    memory_gb: float | None
    candidate: bool
    refused: tuple[str, ...]


def listing(source: str | None, r: int, constraints: Constraints) -> tuple[tuple[Line, ...], str]:
    """Every variant for a model and constraints, and what they were counted on.

    Args:
        source: a model as in `base_model.source`; None for one 4096 x 4096 layer.
        r: rank, where a variant has one.
        constraints: how it will be trained and served.
    """
    layers, where, architecture = _layers(source)
    context = Context.of(constraints, layers, DIRECTIONS)
    kinds = [(offered(kind, [r])[0], kind in CANDIDATES) for kind in VARIANTS]
    return tuple(_line(variant, candidate, context, architecture) for variant, candidate in kinds), where


def _line(variant: Variant, candidate: bool, context: Context, architecture: str | None) -> Line:
    return Line(
        name=variant.name,
        size=variant.size,
        parameters=sum(variant.num_parameters((m, n)) for _, m, n in context.layers) + variant.shared_parameters,
        time=variant.cost.time,
        memory_gb=variant.cost.memory_gb,
        candidate=candidate,
        # a rule and its cell say the same: tests/benchmarks/test_capability.py
        refused=variant.violations(context) or support.faults(variant.name, context, architecture),
    )


def _layers(source: str | None) -> tuple[tuple[tuple[str, int, int], ...], str, str | None]:
    if source is None:
        return (("a layer", 4096, 4096),), "one layer of 4096 x 4096 (name a model with --model)", None
    base = models.resolve(source)
    shapes = models.linear_shapes(base.path)
    layers = tuple((name, m, n) for name, (m, n) in shapes.items() if name.rpartition(".")[2] not in HEADS)
    total = math.fsum(m * n for _, m, n in layers)
    return layers, f"{source}: {len(layers)} linear layers, {total / 1e6:.1f} M weights", base.architecture


def table(model: Any = None, **constraints: Any) -> list[dict[str, Any]]:
    """Every variant for a model: size, trained parameters, cost next to LoRA, and what refuses it under these constraints.

    Args:
        model: a hub id, a folder, a GGUF file, `sample:NAME`, or a loaded model; None for one 4096 x 4096 layer.
        constraints: fields of :class:`lora_select.records.Constraints`, such as `serve="vllm"` or `r=8`.

    Returns:
        One mapping a variant, in the order of the catalogue.

    Raises:
        InputError: no such model, or an unknown constraint.
    """
    known = [field.name for field in fields(Constraints)]
    for name in constraints:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            raise InputError(
                f"`{name}` is no constraint"
                + (f"; did you mean `{near[0]}`?" if near else f"; known: {', '.join(known)}")
            )
    source = model if model is None or isinstance(model, str | Path) else model.config._name_or_path
    wanted = Constraints(**constraints)
    lines, _ = listing(None if source is None else str(source), wanted.r or DEFAULT_RANK, wanted)
    return [
        {
            "variant": line.name,
            "size": line.size,
            "parameters": line.parameters,
            "time": line.time,
            "memory_gb": line.memory_gb,
            "candidate": line.candidate,
            "refused": " ".join(line.refused),
        }
        for line in lines
    ]
