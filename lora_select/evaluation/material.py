"""What every model is measured on: the same rows, questions and reference chunks, and what was left out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from lora_select import models
from lora_select.data.general_text import reference_rows
from lora_select.data.intake import read_canonical
from lora_select.data.labels import render
from lora_select.data.labels.render import Row
from lora_select.data.labels.tokens import TokenRow, read_rows


@final
@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured: rows to generate for, resamples, tokens of reference text; and how.

    `quantize` is how the base is held; `quantized` names forms in which base and merged model are measured too.
    `few_shot` training rows stand in the prompt of the untrained model before anything is trained, as many as fit up to a few where it is `auto`.
    `tasks` are of lm-eval, defined in `task_folder`; `metrics` are the user's own, of the answers (see `answers.parse`).
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
    few_shot: int | str = 0
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
