"""Validation and retention while somebody else's loop trains, and the filter after it: callbacks for transformers' Trainer and what is built on it (TRL).

    import lora_select.callbacks as callbacks

    trainer = SFTTrainer(model=model, args=..., train_dataset=...)
    callbacks.watch(trainer, validation=rows, every=20)
    callbacks.retain(trainer, rows=training_rows, kept=rows, out="kept")
    trainer.train()  # kept/adapter is what should be served, kept/adapter-raw what training left

Numbers go through the trainer's own reporters (MLflow, W&B, TensorBoard) and into `trainer.state.log_history`.
"""

import math
import tempfile
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from transformers import TrainerCallback

from lora_select.data.general_text import reference_rows
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.evaluation.model_losses import label_counts, summed_losses
from lora_select.evaluation.power import paired_error
from lora_select.models import pad_id

if TYPE_CHECKING:
    from lora_select.records import Race, Retention
    from lora_select.retention.settings import RetentionSettings, TaskRows

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
        _log(self.trainer, found)

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
    tokenizer = _tokenizer(trainer)
    if every is not None and every < 1:
        raise InputError(f"`every` must be at least 1 step, got {every}")
    told = _tokens("validation", validation, tokenizer, max_length)
    kept = (
        reference_rows(tokenizer, reference_tokens)
        if retention is None
        else _tokens("retention", retention, tokenizer, max_length)
    )
    return _added(trainer, Watch(trainer, told, kept, every, batch_size))


@final
class Retain(TrainerCallback):
    """Filters the adapter when the training ends; made by :func:`retain`.

    `made` is the record afterwards, None where the adapter could not be filtered; `why` says then why.
    """

    def __init__(
        self, trainer: Any, rows: "TaskRows", settings: "RetentionSettings", base: Any, out: Path, race: "Race | None"
    ) -> None:
        self.trainer, self.rows, self.settings, self.base, self.out = trainer, rows, settings, base, out
        self.race = race
        self.made: Retention | None = None
        self.why = ""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """The race's trials, where a choice came out of one: each at the step at which it ended."""
        for trial in self.race.probes if self.race and not state.global_step else ():
            name = f"eval_race/{trial.key}@{trial.learning_rate:g}/{trial.steps}_steps"
            if trial.held_out:
                _log(self.trainer, {name: math.fsum(trial.held_out) / sum(self.race.labels)})  # pyright: ignore[reportOptionalMemberAccess]

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Save what training left, filter it on a pristine base of its own, write both and log the table. A training is not lost by it."""
        from lora_select import records
        from lora_select.retention.decide import summary
        from lora_select.retention.one_adapter import RAW_ADAPTER, retain_adapter
        from lora_select.retention.standalone import RECORD

        raw = self.out / RAW_ADAPTER
        self.trainer.save_model(str(raw))  # every rank: parts are gathered
        if not state.is_world_process_zero:
            return
        with tempfile.TemporaryDirectory(dir=self.out) as working:
            try:
                self.made = retain_adapter(self.base, raw, self.rows, self.settings, Path(working))
            except InputError as error:
                self.why = str(error)
                warnings.warn(f"the adapter in {raw} was not filtered: {error}", stacklevel=2)
                return
            (Path(working) / self.made.directory).rename(self.out / self.made.directory)
        records.write(self.out / RECORD, self.made)
        _log(self.trainer, table(self.made))
        print(f"retention: {summary(self.made)}; {self.out / self.made.directory} is what should be served")


def table(made: "Retention") -> dict[str, float]:
    """What a filter took back, as numbers for a tracker, in nats a label token.

    The task's loss, and the rise of each reference set with its standard error, as trained (`raw`) and as it should be served (`served`);
    `eval_retained_strength` is 0 where nothing was changed.
    """
    chosen = "raw" if made.decision.choice == "none" else made.decision.choice
    found = {"eval_retained_strength": made.decision.strength}
    for arm, name in (("raw", "raw"), (chosen, "served")):
        if arm in made.task:
            found[f"eval_retained_task_{name}"] = made.task[arm].adapted
        for one in made.references:
            found[f"eval_retained_{one.name}_{name}"] = one.rise[arm].difference
            found[f"eval_retained_{one.name}_{name}_se"] = one.rise[arm].standard_error or 0.0
    return found


def retain(
    trainer: Any,
    *,
    rows: Iterable[Mapping[str, Any]],
    out: str | Path,
    kept: Iterable[Mapping[str, Any]] = (),
    evaluation: Iterable[Mapping[str, Any]] = (),
    base: str | None = None,
    references: Sequence[str] = ("prose",),
    judges: Sequence[str] = (),
    choice: Any = None,
    max_length: int = 1024,
    **settings: Any,
) -> Retain:
    """Filter the adapter after `trainer` has trained it, so that it keeps its task and gives back what the base model knew.

    The base model is loaded once more for it, in float32. Sets and rows are checked now, before the training.

    Args:
        trainer: transformers' Trainer or one built on it, with a PEFT model and its tokenizer as `processing_class`.
        rows: the rows that are trained on, in any form that lora-select reads; they give second moments.
        out: a new folder; gets `adapter` (what to serve), `adapter-raw` and `retention.json`.
        kept: rows of the task that were kept from training; they choose the strength. None given: 32 of `rows`, or as many as hold
            512 label tokens, at most a fifth; their rise is then too small, since they were trained on.
        evaluation: rows that only judge.
        base: the base model; by default what the adapter's config names.
        references: sets that give second moments: `prose`, `code`, `self`, files or hub ids.
        judges: sets that only judge; by default one of the embedded ones that gives nothing.
        choice: what `lora_select.recommend` gave; the trials of its race are logged too.
        max_length: longer rows are cut at their end.
        settings: other fields of `lora_select.retention.settings.RetentionSettings`.

    Returns:
        The callback, already added; its `made` is the record after the training.

    Raises:
        InputError: no adapter, no tokenizer, `out` is not empty, rows or sets that cannot be used.
    """
    from lora_select import models
    from lora_select.retention.references import Sizes, refuse_unusable
    from lora_select.retention.settings import RetentionSettings, TaskRows, selection_rows, split_rows
    from lora_select.retention.standalone import default_judges

    tokenizer = _tokenizer(trainer)
    config = next(iter(getattr(trainer.model, "peft_config", {}).values()), None)
    if config is None:
        raise InputError("the trainer's model has no adapter of PEFT, and the filter works on adapters; give it one")
    source = base or config.base_model_name_or_path
    if not source:
        raise InputError('the adapter does not name its base model; name it: retain(..., base="...")')
    folder = Path(out)
    if folder.exists() and any(folder.iterdir()):
        raise InputError(f"{folder} exists and is not empty; name a new folder as `out`")
    told = RetentionSettings(
        references=tuple(references), judges=tuple(judges) or default_judges(references), **settings
    )
    given, chosen = _tokens("rows", rows, tokenizer, max_length), _tokens("kept", kept, tokenizer, max_length)
    judging = _tokens("evaluation", evaluation, tokenizer, max_length)
    task = (
        TaskRows(given, chosen, judging)
        if chosen
        else split_rows(given, selection_rows(label_counts(given)), told.seed, judging)
    )
    resolved = models.resolve(source)
    every = [*task.moments, *task.selection, *task.evaluation]
    sizes = Sizes(told.reference_tokens, told.judging_units)
    refuse_unusable(told.references, told.judges, resolved, tokenizer, every, sizes=sizes, seed=told.seed)
    folder.mkdir(parents=True, exist_ok=True)
    race = getattr(choice, "race", None)
    return _added(trainer, Retain(trainer, task, told, resolved, folder, race))


def _added(trainer: Any, made: Any) -> Any:
    """First of all callbacks: reporters end their runs when the training ends, and what is logged after that would begin another."""
    trainer.add_callback(made)
    callbacks = trainer.callback_handler.callbacks
    callbacks.insert(0, callbacks.pop())
    return made


def _log(trainer: Any, found: Mapping[str, float]) -> None:
    due = trainer.control.should_log
    trainer.log(dict(found))
    trainer.control.should_log = due  # a log marks the step as logged, and the step's own loss would be lost


def _tokenizer(trainer: Any) -> Any:
    tokenizer = getattr(trainer, "processing_class", None)
    if tokenizer is None:
        raise InputError(
            "the trainer has no `processing_class`; give it the tokenizer: Trainer(..., processing_class=tokenizer)"
        )
    return tokenizer


def _tokens(name: str, rows: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int) -> list[TokenRow]:
    from lora_select.retention.standalone import token_rows

    made = []
    for index, found in enumerate(token_rows(name, rows, tokenizer, max_length)):
        if not found.rows:
            raise InputError(
                f"`{name}` row {index} has no answer within {max_length} of its {found.length} tokens; leave it out or raise max_length"
            )
        made += found.rows
    return made


def _labels(row: TokenRow) -> int:
    return sum(row.label_mask)
