"""What a serving engine is: what it takes, the form it gets, the command that serves it."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final

Form = Literal["lora", "gguf", "mlx", "merged"]
"""What `lora-select export --to` writes."""


@final
@dataclass(frozen=True)
class ServedAdapter:
    """A variant as an engine sees it, before it is trained.

    `rank` is that of the plain LoRA with exactly its function on the pristine base, None where there is none; `merges` says whether
    PEFT merges it; `quantized_base` is None, `nf4` or `int8`.
    """

    variant: str
    rank: int | None
    merges: bool
    quantized_base: str | None = None


@final
@dataclass(frozen=True)
class Engine:
    """One engine. `ranks` are the sizes of its adapter slots, empty where any rank fits without being named.

    `command` makes the shell command from the exported folder, the base model and the rank. `ignores` and `refuses` are the fields of
    a PEFT folder that it drops in silence, and that it stops at; `checked` says how these facts were seen.
    """

    name: str
    title: str
    form: Form
    ranks: tuple[int, ...]
    command: Callable[[Path, str, int], str]
    ignores: frozenset[str]
    refuses: frozenset[str]
    checked: str
    architectures: frozenset[str] | None = None
    """Base models whose adapters it can be given, by the name in their config; None for any."""

    def slot(self, rank: int) -> int:
        """The smallest slot that holds the rank; the rank itself where slots have no fixed sizes."""
        return next((size for size in self.ranks if size >= rank), rank)
