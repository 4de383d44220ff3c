"""Would examples in the prompt do? The untrained model on the held-out rows, alone and after training rows, before anything is trained."""

import functools
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.data.intake import read_canonical
from lora_select.data.labels import render
from lora_select.data.labels.render import Row
from lora_select.data.labels.tokenize import Tokenized, tokenize
from lora_select.evaluation import user_metrics
from lora_select.evaluation.evaluate import compare
from lora_select.evaluation.interval import FEW_ROWS, LEVEL
from lora_select.evaluation.material import EvaluationOptions, Material, gather
from lora_select.evaluation.model_losses import UNMEASURED, Measured, Progress, from_note, measure
from lora_select.evaluation.wording import FEW_SHOT
from lora_select.records import BaseModel, Dataset, FewShot, MetricComparison, file_ref

UNBOUNDED = 10**9
AUTO = "auto"
AUTO_EXAMPLES = 8
"""The most examples of `auto`."""


def measure_few_shot(
    base: BaseModel,
    dataset: Dataset,
    *,
    eval_tokens: Path,
    rows_folder: Path,
    max_length: int,
    options: EvaluationOptions,
    folder: Path,
    known: Measured = UNMEASURED,
    progress: Progress | None = None,
) -> FewShot:
    """Measure the untrained model on the evaluation's rows and questions, alone and with examples; nothing where none can be laid there.

    Args:
        base: the base model.
        dataset: canonical rows of both splits, in `rows_folder`.
        eval_tokens: token rows of the evaluation split.
        rows_folder: where the dataset's files are.
        max_length: `dataset.max_length`, which bounds the prompt where `options.few_shot` is `auto`.
        options: of the evaluation.
        folder: where `base.json` and `few_shot.json` go, a file a model, as each is done.
        known: what was measured of the base before.
        progress: called with (done, total, what).

    Raises:
        InputError: fewer than two held-out rows, or a metric of the user's that fails.
        RuntimeError: a loss is not finite.
    """
    tokenizer = models.load_tokenizer(base.path)
    positions, rows = base.max_position_embeddings, rows_folder / dataset.eval_file.path
    material = gather(tokenizer, eval_tokens, rows, options, longest=positions)
    longest = min(positions or UNBOUNDED, max_length) if options.few_shot == AUTO else positions
    examples, shown, words = lay(
        material, tokenizer, rows, rows_folder / dataset.train_file.path, options, longest=longest
    )
    if shown is None:
        return FewShot(dataset.digest, base.digest, 0, {}, False, (words,), {})
    asked = replace(options, tasks=(), task_folder=".")
    arms = {"base": (replace(material, reference=()), known), FEW_SHOT: (shown, UNMEASURED)}
    measured = {
        name: measure(base, None, held, asked, folder / f"{name}.json", _part(progress, place, len(arms)), earlier)
        for place, (name, (held, earlier)) in enumerate(arms.items())
    }
    metrics = compare(measured["base"], measured[FEW_SHOT], material, options, user_metrics.parse(options.metrics))
    files = {name: file_ref(folder / f"{name}.json", folder) for name in measured}
    return FewShot(dataset.digest, base.digest, examples, metrics, is_enough(metrics), (words,), files)


def earlier(made: FewShot, folder: Path) -> dict[str, Measured]:
    """What was measured of each model, by its name."""
    return {name: from_note(folder / file.path) for name, file in made.files.items()}


def is_enough(metrics: Mapping[str, MetricComparison]) -> bool:
    """Whether the untrained model with examples leaves nothing to train for: every answer is exactly right, of enough questions."""
    match = metrics.get("exact_match")
    return match is not None and all_right(match.adapted, match.rows)


def all_right(share: float, rows: int) -> bool:
    """Whether a share of exactly right answers is at its ceiling, on as many rows as an interval needs."""
    return share == 1.0 and rows >= FEW_ROWS


def at_least(rows: int) -> float:
    """The lower end of the 95 % interval of a share when all of `rows` are right (Clopper and Pearson 1934).

    >>> round(at_least(32), 3)
    0.891
    """
    return ((1 - LEVEL) / 2) ** (1 / rows)


def _part(progress: Progress | None, place: int, parts: int) -> Progress:
    def report(done: int, total: int, what: str) -> None:
        if progress:
            progress(place * total + done, parts * total, f"{what}, with examples" if place else what)

    return report


def lay(
    own: Material,
    tokenizer: Any,
    eval_rows: Path,
    train_rows: Path,
    options: EvaluationOptions,
    *,
    longest: int | None,
) -> tuple[int, Material | None, str]:
    """How many training rows can stand before each row and question as earlier turns, the material with them, and in words what was laid there, or why nothing was.

    The first training rows of one question and one answer are taken, as many as `options.few_shot` says or as fit into `longest` tokens.

    Args:
        own: what every model is measured on.
        tokenizer: the base model's.
        eval_rows: canonical rows of the evaluation split.
        train_rows: canonical rows of the training split.
        options: how many examples.
        longest: the most tokens of a prompt with its answer, None if there is no limit.
    """
    canonical = dict(read_canonical(eval_rows))
    asked = [canonical[row.row_id] for row in own.rows]
    if len({row.row_id for row in own.rows}) < len(own.rows) or not ask_once(asked):
        return 0, None, "no examples were laid before the rows: they are not all of one question and one answer"
    most = AUTO_EXAMPLES if options.few_shot == AUTO else int(options.few_shot)
    found = [row for _, row in read_canonical(train_rows) if ask_once([row])][:most]
    if not found:
        return 0, None, "no examples were laid before the rows: no training row is of one question and one answer"

    @functools.cache
    def written(count: int) -> list[Tokenized]:
        rows = zip(own.rows, asked, strict=True)
        return [tokenize(row.row_id, _after(found[:count], chat), tokenizer, UNBOUNDED) for row, chat in rows]

    def length(count: int) -> int:
        return max(one.length for one in written(count)) + (options.max_new_tokens if own.questions else 0)

    count = len(found) if longest is None else bisect_right(range(1, len(found) + 1), longest, key=length)
    if not count:
        return 0, None, f"no examples were laid before the rows: with one they are longer than {longest} tokens"
    rows = [one.rows[0] if len(one.rows) == 1 else None for one in written(count)]
    same = [
        row is not None and sum(row.label_mask) == sum(mine.label_mask)
        for row, mine in zip(rows, own.rows, strict=True)
    ]
    if not all(same):
        return (
            0,
            None,
            f"no examples were laid before the rows: of {same.count(False)} rows the template then writes another answer",
        )
    questions = [
        replace(one, prompt=render.prompt_and_answer(_after(found[:count], canonical[one.row_id]), tokenizer)[0])
        for one in own.questions
    ]
    held = Material([row for row in rows if row is not None], (), questions, own.pad_id, ())
    fewer = f", as many of {len(found)} as fit into {longest} tokens" if count < len(found) else ""
    return (
        count,
        held,
        f"{count} training row{'s stand' if count > 1 else ' stands'} in the prompt of the untrained model that the "
        f"adapter is held against{fewer}",
    )


def ask_once(rows: Iterable[Row]) -> bool:
    """Whether each row is one question and one answer, after a system message or none, without tools."""
    return all(
        not render.is_text(row)
        and not row.get("tools")
        and [turn["role"] for turn in row["messages"] if turn["role"] != "system"] == ["user", "assistant"]
        for row in rows
    )


def _after(examples: Sequence[Row], row: Row) -> Row:
    """The row with the examples' turns before its own; its system message stays first."""
    system = [turn for turn in row["messages"] if turn["role"] == "system"]
    own = [turn for turn in row["messages"] if turn["role"] != "system"]
    earlier = [
        turn | {"train": False} if turn["role"] == "assistant" else turn
        for example in examples
        for turn in example["messages"]
        if turn["role"] != "system"
    ]
    return {"messages": [*system, *earlier, *own], "tools": row["tools"]}
