"""What an answer is worth: exact match with a stated normalisation, and generation to get the answers."""

import json
from collections.abc import Callable, Sequence
from typing import Any

from lora_select.models import pad_id

Progress = Callable[[int, int, str], None]


def exact_match(expected: str, answer: str) -> bool:
    r"""Equal as JSON when both are JSON (order of keys and spacing do not count), else equal as stripped text.

    >>> exact_match('{"a": 1, "b": [2]}', ' {"b":[2],"a":1} '), exact_match("yes", "yes\n"), exact_match("1", "2")
    (True, True, False)
    """
    wanted, given = as_json(expected), as_json(answer)
    if wanted is not None and given is not None:
        return wanted == given
    return expected.strip() == answer.strip()


def as_json(text: str) -> Any:
    """The parsed object or list, or None: bare words and numbers count as text."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[str],
    *,
    max_new_tokens: int,
    batch_size: int,
    progress: Progress | None = None,
) -> list[str]:
    """Greedy answers in the order of the prompts, each up to its end-of-turn token or `max_new_tokens`."""
    import torch

    ids = [tokenizer(prompt, add_special_tokens=False)["input_ids"] for prompt in prompts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    answers = [""] * len(ids)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        width = max(len(ids[index]) for index in chosen)
        fill = pad_id(tokenizer)
        inputs = torch.tensor([[fill] * (width - len(ids[i])) + ids[i] for i in chosen], device=model.device)
        mask = torch.tensor([[0] * (width - len(ids[i])) + [1] * len(ids[i]) for i in chosen], device=model.device)
        with torch.inference_mode():
            output = model.generate(
                input_ids=inputs,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                do_sample=False,
                pad_token_id=fill,
                eos_token_id=tokenizer.eos_token_id,
                temperature=None,
                top_p=None,
                top_k=None,
            )
        for index, row in zip(chosen, output[:, width:].tolist(), strict=True):
            end = row.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in row else len(row)
            answers[index] = tokenizer.decode(row[:end], skip_special_tokens=True)
        if progress:
            progress(min(start + batch_size, len(order)), len(order), "answers")
    return answers
