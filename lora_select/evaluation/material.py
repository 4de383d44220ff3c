"""What every model is measured on: the same rows, questions and reference chunks, and what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, final

from lora_select import models
from lora_select.data.general_text import reference_rows
from lora_select.data.intake import read_canonical
from lora_select.data.labels import render
from lora_select.data.labels.render import Row
from lora_select.data.labels.tokenize import Tokenized, tokenize
from lora_select.data.labels.tokens import TokenRow, read_rows

UNBOUNDED = 10**9
FEW_SHOT = "few_shot"
"""Name of the untrained model with examples in its prompt, beside other adapters."""


@final
@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured: rows to generate for, resamples, tokens of reference text; and how.

    `quantize` is how the base is held; `quantized` names forms in which base and merged model are measured too.
    `few_shot` training rows stand in the prompt of the untrained model for one more comparison. `tasks` are of lm-eval, defined in `task_folder`; `metrics` are the user's own, of the answers (see `answers.parse`).
    """

    exact_match_rows: int
    max_new_tokens: int
    bootstrap_samples: int
    reference_tokens: int
    seed: int = 0
    batch_size: int = 8
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str | None = None
    quantized: tuple[str, ...] = ()
    few_shot: int = 0
    tasks: tuple[str, ...] = ()
    task_folder: str = "."
    task_limit: int | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True)
class Question:
    """A held-out row to answer: `prompt` is what the model reads, `asked` its last user message, for people."""

    row_id: str
    prompt: str
    asked: str
    expected: str


@final
@dataclass(frozen=True)
class Material:
    """The rows that every model is measured on. `left_out` says, in sentences, what of the split is not among them."""

    rows: Sequence[TokenRow]
    reference: Sequence[TokenRow]
    questions: Sequence[Question]
    pad_id: int
    left_out: tuple[str, ...]


def gather(
    tokenizer: Any, eval_tokens: Path, eval_rows: Path, options: EvaluationOptions, *, longest: int | None
) -> Material:
    """Read the held-out rows, make the questions and the reference chunks.

    Args:
        tokenizer: the base model's.
        eval_tokens: token rows of the evaluation split: those with a label.
        eval_rows: canonical rows of the evaluation split: all.
        options: how many questions and reference tokens.
        longest: the most tokens the model can place (`max_position_embeddings`), None if there is no limit.
    """
    rows = read_rows(eval_tokens)
    canonical = list(read_canonical(eval_rows))
    questions, too_long = _questions(tokenizer, canonical, {row.row_id for row in rows}, options, longest)
    left_out = []
    if len(rows) < len(canonical):
        left_out.append(
            f"{len(canonical) - len(rows)} of {len(canonical)} held-out rows have no label token within "
            "`dataset.max_length` and are not measured"
        )
    if too_long:
        left_out.append(
            f"{too_long} questions are not asked: with {options.max_new_tokens} new tokens they are longer than the "
            f"model's {longest} positions"
        )
    return Material(
        rows=rows,
        reference=reference_rows(tokenizer, options.reference_tokens),
        questions=questions,
        pad_id=models.pad_id(tokenizer),
        left_out=tuple(left_out),
    )


def few_shot(
    own: Material,
    tokenizer: Any,
    eval_rows: Path,
    train_rows: Path,
    options: EvaluationOptions,
    *,
    longest: int | None,
) -> tuple[Material | None, str]:
    """The same rows and questions with training rows as earlier turns before each, and in words what was laid before, or why nothing was.

    The first training rows of one question and one answer are taken, as many as `options.few_shot` says or as fit into `longest` tokens.

    Args:
        own: what every model is measured on.
        tokenizer: the base model's.
        eval_rows: canonical rows of the evaluation split.
        train_rows: canonical rows of the training split.
        options: how many examples.
        longest: the most tokens the model can place, None if there is no limit.
    """
    canonical = dict(read_canonical(eval_rows))
    asked = [canonical[row.row_id] for row in own.rows]
    if len({row.row_id for row in own.rows}) < len(own.rows) or not all(map(_single, asked)):
        return None, "no examples were laid before the rows: they are not all of one question and one answer"
    examples = [row for _, row in read_canonical(train_rows) if _single(row)][: options.few_shot]
    made: list[Tokenized] = []
    while examples:
        made = [
            tokenize(row.row_id, _after(examples, chat), tokenizer, longest or UNBOUNDED)
            for row, chat in zip(own.rows, asked, strict=True)
        ]
        room = options.max_new_tokens if own.questions else 0
        if longest is None or max(one.length for one in made) + room <= longest:
            break
        examples = examples[: len(examples) // 2]
    if not examples:
        return (
            None,
            f"no examples were laid before the rows: with one they are longer than the model's {longest} positions",
        )
    rows = [one.rows[0] if len(one.rows) == 1 else None for one in made]
    same = [
        row is not None and sum(row.label_mask) == sum(mine.label_mask)
        for row, mine in zip(rows, own.rows, strict=True)
    ]
    if not all(same):
        return (
            None,
            f"no examples were laid before the rows: of {same.count(False)} rows the template then writes another answer",
        )
    questions = [
        replace(one, prompt=render.prompt_and_answer(_after(examples, canonical[one.row_id]), tokenizer)[0])
        for one in own.questions
    ]
    held = Material([row for row in rows if row is not None], (), questions, own.pad_id, ())
    return (
        held,
        f"{len(examples)} training rows stand in the prompt of the untrained model that the adapter is held against",
    )


def _single(row: Row) -> bool:
    """Whether a row is one question and one answer, after a system message or none, without tools."""
    roles = [turn["role"] for turn in row["messages"] if turn["role"] != "system"]
    return not render.is_text(row) and roles == ["user", "assistant"] and not row.get("tools")


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


def _questions(
    tokenizer: Any,
    canonical: Sequence[tuple[str, Row]],
    measured: set[str],
    options: EvaluationOptions,
    longest: int | None,
) -> tuple[list[Question], int]:
    """The first rows that ask something, in file order (which is by digest), and how many were too long to ask."""
    found: list[Question] = []
    too_long = 0
    for row_id, row in canonical:
        if len(found) == options.exact_match_rows:
            break
        prompt, expected = ("", "") if render.is_text(row) else render.prompt_and_answer(row, tokenizer)
        if not prompt or row_id not in measured:
            continue
        tokens = len(tokenizer(prompt, add_special_tokens=False)["input_ids"])
        if longest is not None and tokens + options.max_new_tokens > longest:
            too_long += 1
            continue
        found.append(Question(row_id, prompt, _last_question(row), expected))
    return found, too_long


def _last_question(row: Row) -> str:
    """What a person reads as the question: the last user message."""
    return next((turn["content"] for turn in reversed(row["messages"]) if turn["role"] == "user"), "")
