"""What is trained on: a base model with a task's rows."""

import functools
import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

from benchmarks.models import gguf
from benchmarks.selection.sweep import tasks
from benchmarks.selection.sweep.table import Base
from lora_select import models
from lora_select.data.general_text import reference_rows
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import BaseModel

CAUSAL = ("smollm2-135m", "gemma3-270m")
"""A model that follows instructions, and one that was only pretrained; see `benchmarks/models.py` for the packages."""
PARAMETERS = {"smollm2-135m": 134_515_008, "gemma3-270m": 268_098_176}
ENCODER = "minilm"
MODELS = (*CAUSAL, ENCODER)
REFERENCE_TOKENS = 1024
ROUNDING = 1e-2
"""Of losses between machines; other rows differ by far more."""


@final
@dataclass(frozen=True)
class Subject:
    """A loaded base model, training and held-out rows, and the rows by which forgetting is measured."""

    model: Any
    source: BaseModel
    pad_id: int
    rows: tasks.Rows
    reference: tuple[TokenRow, ...]
    packing: bool


def check_rows(base: Base, subject: Subject, name: str, measure: Callable[[], Base]) -> float | None:
    """Runs of a setting are compared row by row, so all must be on the same rows; general text may differ, if its own loss is kept.

    Args:
        base: the setting's record.
        subject: with this machine's rows.
        name: the setting's.
        measure: the base model on this machine's rows, asked where the record is older than its digest.

    Returns:
        The base model's loss on this machine's general text where that is not the setting's, in nats per token; None where it is.

    Raises:
        ValueError: this machine's source of the task gives other rows than those that the setting was begun with.
    """
    if base.rows_digest:
        same, reference = base.rows_digest == rows_digest(subject), None
    else:
        now = measure()
        same = (base.labels, base.train_tokens) == (now.labels, now.train_tokens)
        same = same and all(map(_close, base.held_out, now.held_out))
        reference = None if _close(base.reference, now.reference) else now.reference
    if not same:
        raise ValueError(
            f"{name} was begun on other rows than this machine's source gives (Debian's package lists change); "
            "sweep the task under a name of its own, as section-later in benchmarks/selection/sweep/tasks.py"
        )
    return reference


def _close(first: float, second: float) -> bool:
    return math.isclose(first, second, rel_tol=ROUNDING, abs_tol=ROUNDING)


def rows_digest(subject: Subject) -> str:
    """Of the token ids of training, held-out and general rows, in order."""
    rows = (*subject.rows.train, *subject.rows.held_out, *subject.reference)
    return hashlib.sha256(json.dumps([row.input_ids for row in rows]).encode()).hexdigest()[:16]


def load(model: str, task: tasks.Task, count: int) -> Subject:
    """A model of `MODELS` with `count` training rows of the task.

    Raises:
        ValueError: too few usable rows, a task that the encoder cannot do, or a model whose packages are missing.
    """
    if model == ENCODER:
        from benchmarks.selection.sweep import encoder

        if task.name.split("-")[0] not in encoder.TASKS:
            raise ValueError(f"task {task.name} is no classification; the encoder does {', '.join(encoder.TASKS)}")
        return Subject(*encoder.loaded(task, count), packing=False)
    file = gguf(model)
    if file is None:
        raise ValueError(f"model {model} is not installed; benchmarks/models.py names its packages")
    source = models.resolve(str(file))
    tokenizer = models.load_tokenizer(source.path)
    return Subject(
        model=models.load_model(source.path),
        source=source,
        pad_id=models.pad_id(tokenizer),
        rows=tasks.rows(task, functools.partial(tasks.chat_row, task, tokenizer), count),
        reference=tuple(reference_rows(tokenizer, REFERENCE_TOKENS)),
        packing=True,
    )
