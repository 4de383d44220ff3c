"""`lora-select variants`: the catalogue for the user's model and setting."""

import math
from dataclasses import dataclass
from typing import Any, final

from lora_select import models
from lora_select.records import Constraints
from lora_select.variants import CANDIDATES, VARIANTS, offered, support
from lora_select.variants.base import Context, Variant

HEADS = ("lm_head", "embed_out", "score", "classifier")
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
        # a rule and its cell say the same: tests/capability
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


def show(lines: tuple[Line, ...], where: str, *, plain: bool) -> str | Any:
    """A table for a terminal, or tab-separated lines where there is none."""
    rows = [_cells(line) for line in lines]
    notes = [(line.name, line.refused) for line in lines if line.refused]
    if plain:
        head = ("variant", "size", "parameters", "time", "memory", "")
        return "\n".join([where, *("\t".join(row) for row in (head, *rows)), *_footnotes(notes)])
    from rich.table import Table

    table = Table(
        title=where,
        caption="time and memory next to LoRA r 32: PEFT's MetaMathQA runs, one L40S; * measured by the spectral pass",
    )
    for name, justify in (
        ("variant", "left"),
        ("size", "left"),
        ("parameters", "right"),
        ("time", "right"),
        ("memory", "right"),
    ):
        table.add_column(name, justify=justify)  # pyright: ignore[reportArgumentType]
    table.add_column("refused because", overflow="fold")
    for row, line in zip(rows, lines, strict=True):
        table.add_row(*row[:-1], " ".join(line.refused), style="dim" if line.refused else "")
    return table


def _cells(line: Line) -> tuple[str, ...]:
    time = f"x {line.time:.2f}" if line.time is not None else "?"
    memory = f"{line.memory_gb:+.1f} GB" if line.memory_gb is not None else "?"
    name = f"{line.name}*" if line.candidate else line.name
    return name, line.size, f"{line.parameters:,}", time, memory, "refused" if line.refused else "ok"


def _footnotes(notes: list[tuple[str, tuple[str, ...]]]) -> list[str]:
    return [f"{name}: {sentence}" for name, sentences in notes for sentence in sentences]
