"""Adapters compared after the filter: what counts is the frontier of what would be served, and the words that tell how to get there."""

import math
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

from lora_select.records import Retention
from lora_select.retention.decide import FILTER, RAW
from lora_select.retention.path import chosen


@final
@dataclass(frozen=True)
class Served:
    """One adapter as it would be served: task loss on its selection rows, and the mean rise on reference text, nats per token."""

    task: float
    forgetting: float


def served(made: Retention) -> Served:
    """Where the decision put the adapter. The reference rises are those of the rows that judge."""
    evidence, choice = made.evidence, made.decision.choice
    if choice == "none":
        task, arm = evidence.raw_loss, RAW
    else:
        point = chosen(evidence.filter_path if choice == FILTER else evidence.scale_path)
        assert point is not None, "a decision names a strength of its path"
        task, arm = point.loss, choice
    rises = [one.rise[arm].difference for one in made.references]
    return Served(task, math.fsum(rises) / len(rises))


def best(candidates: Mapping[str, Served], *, tie: float) -> str:
    """The candidate of the lowest task loss after the filter; of those within `tie` nats of it, the one that forgets least.

    Example:
        >>> best({"a": Served(1.00, 0.3), "b": Served(1.01, 0.02), "c": Served(1.2, 0.0)}, tie=0.02)
        'b'
    """
    lowest = min(one.task for one in candidates.values())
    tied = [name for name, one in candidates.items() if one.task <= lowest + tie]
    return min(tied, key=lambda name: (candidates[name].forgetting, candidates[name].task, name))


def dominated(candidates: Mapping[str, Served]) -> tuple[str, ...]:
    """Those that another beats in both, or in one at equality in the other.

    Example:
        >>> dominated({"a": Served(1.0, 0.3), "b": Served(1.0, 0.2), "c": Served(1.2, 0.0)})
        ('a',)
    """
    return tuple(
        name
        for name, one in candidates.items()
        if any(
            other != one and other.task <= one.task and other.forgetting <= one.forgetting
            for other in candidates.values()
        )
    )


def command(adapter: str, base: str, data: str) -> str:
    """The command that filters an adapter which another trainer made, for recommendations and the files that they write.

    Example:
        >>> command("out/adapter", "org/model", "my rows.jsonl")
        "lora-select retain out/adapter --base org/model --data 'my rows.jsonl' --out out/adapter-retained"
    """
    parts = [
        "lora-select",
        "retain",
        adapter,
        "--base",
        base,
        "--data",
        data,
        "--out",
        f"{adapter.rstrip('/')}-retained",
    ]
    return shlex.join(parts)
