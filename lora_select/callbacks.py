"""Validation and retention while somebody else's loop trains: a callback for transformers' Trainer and what is built on it (TRL).

    import lora_select.callbacks as callbacks

    trainer = SFTTrainer(model=model, args=..., train_dataset=...)
    callbacks.watch(trainer, validation=rows, every=20)
    trainer.train()

Numbers go through the trainer's own reporters (MLflow, W&B, TensorBoard) and into `trainer.state.log_history`.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

from transformers import TrainerCallback

from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.data.reading import formats
from lora_select.errors import InputError
from lora_select.evaluation.forgetting import reference_rows
from lora_select.evaluation.model_losses import summed_losses
from lora_select.evaluation.power import paired_error
from lora_select.models import pad_id

VALIDATION, RETENTION, FORGETTING = "eval_validation_loss", "eval_retention_loss", "eval_forgetting"
"""Mean loss of a label token in nats on the validation rows and on the retention rows; the rise of the latter since the start."""


@final
class Watch(TrainerCallback):
    """Measures at the start, every `every` steps, and at the end; made by :func:`watch`.

    Nothing of the training changes: no random numbers are drawn, no gradient is kept, the model goes back to the mode that it was in.
    `history` holds each measurement with its step.
    """

    def __init__(
        self, trainer: Any, validation: Sequence[TokenRow], retention: Sequence[TokenRow], every: int | None, batch: int
    ) -> None:
        self.trainer, self.validation, self.retention = trainer, validation, retention
        self.every, self.batch = every, batch
        self.history: list[dict[str, float]] = []
        self._start: list[float] = []

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The losses that everything later is compared with; a resumed training is compared with where it resumed."""
        self._start = self._losses(self.retention)
        self._measure(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Every `every` steps."""
        if self.every and state.global_step % self.every == 0:
            self._measure(state.global_step)

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """With the trainer's own evaluations, where no interval of steps was named."""
        if not self.every:
            self._measure(state.global_step)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The last word: of the weights that stay, which are others than the last step's where the best ones were loaded."""
        if self.history and self.history[-1]["step"] == state.global_step:
            if not args.load_best_model_at_end:
                return
            self.history.pop()
        self._measure(state.global_step)

    def _measure(self, step: int) -> None:
        if self.history and self.history[-1]["step"] == step:
            return
        found: dict[str, float] = {}
        if self.validation:
            losses = self._losses(self.validation)
            found[VALIDATION] = math.fsum(losses) / sum(map(_labels, self.validation))
        if self.retention:
            now = self._losses(self.retention)
            found[RETENTION] = math.fsum(now) / sum(map(_labels, self.retention))
            labels = [_labels(row) for row in self.retention]
            found[FORGETTING] = (math.fsum(now) - math.fsum(self._start)) / sum(labels)
            found[f"{FORGETTING}_se"] = paired_error(self._start, now, labels) if len(now) > 1 else 0.0
        self.history.append({"step": step, **found})
        due = self.trainer.control.should_log
        self.trainer.log(dict(found))
        self.trainer.control.should_log = due  # a log marks the step as logged, and the step's own loss would be lost

    def _losses(self, rows: Sequence[TokenRow]) -> list[float]:
        """Summed loss of each row in nats; every process computes all rows, so a model that is spread over them can."""
        import torch

        model, pad = self.trainer.model_wrapped, pad_id(self.trainer.processing_class)
        training = model.training
        model.eval()
        try:
            with torch.no_grad(), self.trainer.compute_loss_context_manager():
                return summed_losses(model, rows, pad, self.batch, self.trainer.args.device)
        finally:
            model.train(training)


def watch(
    trainer: Any,
    *,
    validation: Iterable[Mapping[str, Any]] = (),
    retention: Iterable[Mapping[str, Any]] | None = None,
    every: int | None = None,
    max_length: int = 1024,
    reference_tokens: int = 2048,
    batch_size: int = 4,
) -> Watch:
    """Measure validation and retention while `trainer` trains.

    Args:
        trainer: transformers' Trainer or one built on it, with its tokenizer as `processing_class`.
        validation: held-out rows of the task in any form that lora-select reads (`messages`, prompt and completion, text, ...).
        retention: rows of what must not be forgotten; None for general English prose.
        every: steps between measurements; None for the trainer's own evaluations. Start and end are always measured.
        max_length: longer rows are cut at their end.
        reference_tokens: about how many tokens of prose, where `retention` is None.
        batch_size: rows at a time.

    Returns:
        The callback, already added; its `history` holds what was measured.

    Raises:
        InputError: there is no tokenizer, or a row has no form that is known or no label.
    """
    tokenizer = getattr(trainer, "processing_class", None)
    if tokenizer is None:
        raise InputError(
            "the trainer has no `processing_class`; give it the tokenizer: Trainer(..., processing_class=tokenizer)"
        )
    if every is not None and every < 1:
        raise InputError(f"`every` must be at least 1 step, got {every}")
    told = _tokens("validation", validation, tokenizer, max_length)
    kept = (
        reference_rows(tokenizer, reference_tokens)
        if retention is None
        else _tokens("retention", retention, tokenizer, max_length)
    )
    made = Watch(trainer, told, kept, every, batch_size)
    trainer.add_callback(made)
    return made


def _tokens(name: str, rows: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int) -> list[TokenRow]:
    made = []
    for index, row in enumerate(rows):
        try:
            found = tokenize(f"{name}-{index}", formats.convert(formats.detect(row), dict(row)), tokenizer, max_length)
        except ValueError as error:
            raise InputError(f"`{name}` row {index}: {error}") from error
        if not found.rows:
            raise InputError(
                f"`{name}` row {index} has no answer within {max_length} of its {found.length} tokens; leave it out or raise max_length"
            )
        made += found.rows
    return made


def _labels(row: TokenRow) -> int:
    return sum(row.label_mask)
