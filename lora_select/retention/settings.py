"""What a retention run is told: its settings, and the task's rows in three parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from lora_select.data.tokens import TokenRow
from lora_select.retention import filter as filtering
from lora_select.retention import forms
from lora_select.retention.moments import EXACT_WIDTH, SKETCH_COLUMNS
from lora_select.retention.references import CODE, PROSE, SELF


@final
@dataclass(frozen=True)
class RetentionSettings:
    """How an adapter is filtered and judged.

    `references` give second moments and judge on other text; `judges` only judge. `tolerance`: `1%` of the loss, nats, or None for one
    paired standard error and at most 1 %. `prior` is the isotropic share of Zr. `task_tokens` and `reference_tokens` bound the rows that moments
    are taken from. `keep_moments` writes the task's second moments beside the adapter, for the next training's filter; `earlier` are such files.
    """

    references: tuple[str, ...] = (PROSE, SELF)
    judges: tuple[str, ...] = (CODE,)
    tolerance: str | None = None
    prior: float = 0.0
    ridge: float = filtering.RIDGE
    task_tokens: int = 4096
    reference_tokens: int = 4096
    judging_units: int = 16
    max_error: float = forms.MAX_ERROR
    exact_width: int = EXACT_WIDTH
    sketch_columns: int = SKETCH_COLUMNS
    keep_moments: bool = False
    earlier: tuple[Path, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str | None = None
    seed: int = 0


@final
@dataclass(frozen=True)
class TaskRows:
    """The task's rows in three parts: those that give second moments, those that choose the strength, those that judge (may be none)."""

    moments: Sequence[TokenRow]
    selection: Sequence[TokenRow]
    evaluation: Sequence[TokenRow] = ()
