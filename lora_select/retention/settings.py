"""What a retention run is told: its settings, and the task's rows in three parts."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.records import TrainingPlan
from lora_select.retention import filter as filtering
from lora_select.retention import forms
from lora_select.retention.moments import EXACT_WIDTH, SKETCH_COLUMNS
from lora_select.retention.references import CODE, PROSE
from lora_select.training import validation

LINES_OWN = ("mode", "replay")
"""Fields of a config's `retention` that are no setting of the filter."""
LEAST_SELECTION, USUAL_SELECTION = 8, 32
SELECTION_LABELS = 512
"""Label tokens that choose. A rise of d nats a token has an error near sqrt(2 d / tokens), so that half a tolerance t is known to half of it from
4 / t tokens; 512 do for a tolerance of 0.008, 1 % of a loss of 0.8."""
JUDGING_ROWS = 32
"""Evaluation rows that show what the filter cost the task; the evaluation itself reads all of them."""
LEAST_TOKENS, SHARE_OF_TRAINING = 2048, 8
"""Second moments are taken from an eighth of the tokens that training reads, but from no fewer than this."""
LEAST_UNITS, TOKENS_A_UNIT = 8, 4096
"""Of each set that judge: one for so many tokens of training, but no fewer than this."""


@final
@dataclass(frozen=True)
class RetentionSettings:
    """How an adapter is filtered and judged.

    `references` give second moments and judge on other text; `judges` only judge. `tolerance`: `1%` of the loss, nats, or None for 1 %.
    `prior` is the isotropic share of Zr. `task_tokens` and `reference_tokens` bound the rows that moments
    are taken from. `keep_moments` writes the task's second moments beside the adapter, for the next training's filter; `earlier` are such files.
    The base is held in `dtype`, float32 also where the training was in bfloat16: 4 bytes a parameter.
    """

    references: tuple[str, ...] = (PROSE,)
    judges: tuple[str, ...] = (CODE,)
    tolerance: str | None = None
    prior: float = 0.0
    ridge: float = filtering.RIDGE
    task_tokens: int = 8192
    reference_tokens: int = 8192
    judging_units: int = 16
    max_error: float = forms.MAX_ERROR
    exact_width: int = EXACT_WIDTH
    sketch_columns: int = SKETCH_COLUMNS
    keep_moments: bool = False
    earlier: tuple[str | Path, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str | None = None
    seed: int = 0

    def beside(self, training_tokens: int) -> "RetentionSettings":
        """What a training that reads so many tokens pays for: the settings are the most that is read.

        >>> short, long = (RetentionSettings().beside(tokens) for tokens in (36_000, 1_000_000))
        >>> (short.task_tokens, short.judging_units), (long.task_tokens, long.judging_units)
        ((4500, 8), (8192, 16))
        """
        tokens = max(LEAST_TOKENS, training_tokens // SHARE_OF_TRAINING)
        units = max(LEAST_UNITS, training_tokens // TOKENS_A_UNIT)
        return dataclasses.replace(
            self,
            task_tokens=min(self.task_tokens, tokens),
            reference_tokens=min(self.reference_tokens, tokens),
            judging_units=min(self.judging_units, units),
        )


def beside_training(
    config: Mapping[str, Any], plan: TrainingPlan, rows: Sequence[TokenRow], **machine: Any
) -> RetentionSettings:
    """The filter's settings of a run: what its config says, no more than its training pays for, and the training's seed.

    Args:
        config: the run's `retention`.
        plan: of the training.
        rows: of the task that are trained on.
        machine: how the base is held: `device`, `quantize`.
    """
    told = {name: value for name, value in config.items() if name not in LINES_OWN}
    each = sum(len(row.input_ids) for row in rows) / max(1, len(rows))
    tokens = round(plan.total_steps * plan.effective_batch_size * each)
    return RetentionSettings(**told, **machine, seed=plan.seed).beside(tokens)


@final
@dataclass(frozen=True)
class TaskRows:
    """The task's rows in three parts: those that give second moments, those that choose the strength, those that judge (may be none)."""

    moments: Sequence[TokenRow]
    selection: Sequence[TokenRow]
    evaluation: Sequence[TokenRow] = ()
    notes: tuple[str, ...] = ()
    """What of the source is not among the rows, in sentences."""


def split_rows(rows: Sequence[TokenRow], kept: int, seed: int, evaluation: Sequence[TokenRow] = ()) -> TaskRows:
    """The task's training rows in parts: `kept` rows choose the strength, the others give second moments.

    With the plan's `validation_rows` and seed these are the rows that the training kept from itself.

    Args:
        rows: token rows of the training split, in file order.
        kept: rows that choose; see :func:`selection_rows` where no plan says.
        seed: of the split.
        evaluation: rows that judge.

    Raises:
        InputError: fewer than 8 would choose.
    """
    if kept < LEAST_SELECTION:
        raise InputError(
            f"the filter's strength is chosen on rows that were kept from training and needs {LEAST_SELECTION} of them, got {kept} of "
            f"{len(rows)}: bring more rows, raise `training.validation`, or set `retention.mode` to off"
        )
    given, chosen = validation.split(rows, kept, seed)
    return TaskRows(given, chosen, evaluation)


def selection_rows(labels: Sequence[int]) -> int:
    """How many rows choose where no training kept any: 32, or as many as hold 512 label tokens, but at most a fifth.

    Args:
        labels: label tokens of each row.

    >>> selection_rows([60] * 60), selection_rows([60] * 5000), selection_rows([3] * 5000), selection_rows([60] * 39)
    (12, 32, 171, 7)
    """
    if not labels:
        return 0
    wanted = max(USUAL_SELECTION, -(-SELECTION_LABELS * len(labels) // max(1, sum(labels))))
    return min(wanted, len(labels) // 5)
