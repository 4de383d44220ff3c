"""What is trained on: a base model with a task's rows."""

import functools
from dataclasses import dataclass
from typing import Any, final

from benchmarks.selection import tasks
from lora_select import models
from lora_select.data.tokens import TokenRow
from lora_select.evaluation.forgetting import reference_rows
from lora_select.records import BaseModel

CAUSAL = {"smollm2-135m": "sample:smollm2-135m-instruct"}
ENCODER = "minilm"
MODELS = (*CAUSAL, ENCODER)
REFERENCE_TOKENS = 1024


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


def load(model: str, task: tasks.Task, count: int) -> Subject:
    """A model of `MODELS` with `count` training rows of the task.

    Raises:
        ValueError: too few usable rows, or a task that the encoder cannot do.
    """
    if model == ENCODER:
        from benchmarks.selection import encoder

        if task.name.removesuffix("-shuffled") not in encoder.TASKS:
            raise ValueError(f"task {task.name} is no classification; the encoder does {', '.join(encoder.TASKS)}")
        return encoder.subject(task, count)
    source = models.resolve(CAUSAL[model])
    tokenizer = models.load_tokenizer(source.path)
    return Subject(
        model=models.load_model(source.path),
        source=source,
        pad_id=models.pad_id(tokenizer),
        rows=tasks.rows(task, functools.partial(tasks.chat_row, task, tokenizer), count),
        reference=tuple(reference_rows(tokenizer, REFERENCE_TOKENS)),
        packing=True,
    )
