"""How PEFT is told which layers get an adapter: by the ends of their names, or by a pattern where other layers have the same ends."""

import itertools
import re
from collections.abc import Iterable, Sequence


def target_modules(adapted: Sequence[str], others: Sequence[str]) -> list[str] | str:
    """The ends of the names, as PEFT's documentation shows them; a pattern of whole names where an end would take another layer too.

    A vision tower calls its layers as the language model does (`q_proj`), and ends alone would put adapters on it.

    Args:
        adapted: names of the layers that get an adapter.
        others: names of the model's other layers.
    """
    ends = sorted({name.rpartition(".")[2] for name in adapted})
    if not _caught(others, ends):
        return ends
    pattern = rf"{re.escape(_common_prefix(adapted))}(.*\.)?({'|'.join(map(re.escape, ends))})"
    if any(re.fullmatch(pattern, name) for name in others):
        pattern = "|".join(map(re.escape, sorted(adapted)))
    return pattern


def target_parameters(experts: Iterable[str]) -> list[str]:
    """The ends of the expert tensors' names, with the module that holds them: `experts.down_proj`."""
    return sorted({".".join(name.split(".")[-2:]) for name in experts})


def _caught(others: Sequence[str], ends: Sequence[str]) -> bool:
    return any(name == end or name.endswith(f".{end}") for name in others for end in ends)


def _common_prefix(names: Sequence[str]) -> str:
    """What all names begin with, up to a dot: `model.language_model.layers.`."""
    places = zip(*(name.split(".")[:-1] for name in names), strict=False)
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, places)
    return "".join(f"{parts[0]}." for parts in shared)
