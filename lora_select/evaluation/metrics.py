"""What an answer is worth: exact match with a stated normalisation, and generation to get the answers."""

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from lora_select.data.labels.ends import end_of_turn
from lora_select.data.labels.pieces import split_thought
from lora_select.models import pad_id

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[int, int, str], None]
SHORT_ANSWER = 64
"""Characters: an expected answer of one line and at most so many has one right form."""


def exact_match(expected: str, answer: str) -> bool:
    r"""Equal as JSON when both are JSON (order of keys and spacing do not count), else equal as stripped text.

    A thought before the answer (up to `</think>`) does not count: templates open and close it, and rows may not hold it.

    >>> exact_match('{"a": 1, "b": [2]}', ' {"b":[2],"a":1} '), exact_match("yes", "yes\n"), exact_match("1", "2")
    (True, True, False)
    >>> exact_match('{"a": true}', '{"a": 1}'), exact_match('{"a": 1}', '{"a": 1.0}')
    (False, True)
    >>> exact_match("4", "<think>\n\n</think>\n\n4")
    True
    """
    expected, answer = (split_thought(text)[1].strip() for text in (expected, answer))
    wanted, given = as_json(expected), as_json(answer)
    if wanted is not None and given is not None:
        return _same(wanted, given)
    return expected == answer


def has_one_form(expected: Sequence[str]) -> bool:
    r"""Whether every expected answer is JSON, or one short line: a longer one can be said in many ways.

    >>> has_one_form(['{"a": 1}', "[]"]), has_one_form(["yes", "no"]), has_one_form(["first\nthen"])
    (True, True, False)
    """
    as_objects = all(as_json(text) is not None for text in expected)
    return as_objects or all(len(text.strip()) <= SHORT_ANSWER and "\n" not in text.strip() for text in expected)


def as_json(text: str) -> Any:
    """The parsed object or list, or None: bare words and numbers count as text; NaN and Infinity are no JSON."""
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # a model that repeats "[" nests deeper than the parser goes
        return None
    return value if isinstance(value, dict | list) else None


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")


def _same(wanted: Any, given: Any) -> bool:
    """Equality as JSON means it: numbers by value, and true is not 1, which it is to Python."""
    if isinstance(wanted, dict) and isinstance(given, dict):
        return wanted.keys() == given.keys() and all(_same(wanted[key], given[key]) for key in wanted)
    if isinstance(wanted, list) and isinstance(given, list):
        return len(wanted) == len(given) and all(map(_same, wanted, given))
    return isinstance(wanted, bool) == isinstance(given, bool) and wanted == given


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """Greedy answers in the order of the prompts, each up to its end-of-turn token or `max_new_tokens`.

    Prompts are batched by length and padded on the left, so that every answer begins at the same place.
    """
    import torch

    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    answers, ends, fill = [""] * len(ids), end_ids(model, tokenizer), pad_id(tokenizer)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        inputs = _left_padded([ids[index] for index in chosen], fill, model.device)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=fill,
                eos_token_id=ends or None,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        for index, row in zip(chosen, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
            end = next((place for place, token in enumerate(row) if token in ends), len(row))
            answers[index] = tokenizer.decode(row[:end], skip_special_tokens=True)
        if progress:
            progress(min(start + batch_size, len(order)), len(order), "answers")
    return answers


def end_ids(model: Any, tokenizer: Any) -> list[int]:
    """The tokens that end an answer: the tokenizer's, the model's own, and what the chat template puts after a turn.

    The three differ: Gemma's template ends turns with `<end_of_turn>` while the tokenizer's end token is `<eos>`, and a
    tuned model that says the former would otherwise run on to `max_new_tokens`.
    """
    own = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    found = {tokenizer.eos_token_id, *(own if isinstance(own, list) else [own]), end_of_turn(tokenizer)}
    return sorted(token for token in found if token is not None)


def _left_padded(rows: Sequence[Sequence[int]], fill: int, device: Any) -> "dict[str, Tensor]":
    import torch

    width = max(len(row) for row in rows)
    padded = [[fill] * (width - len(row)) + list(row) for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return {
        "input_ids": torch.tensor(padded, device=device),
        "attention_mask": torch.tensor(mask, device=device),
    }
