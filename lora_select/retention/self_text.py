"""Text that the base model wrote itself: from its start token, and as a conversation in its chat template. Needs no data.

References:
    CFS (arXiv 2505.13811): a model's own samples stand in for the data it was trained on.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.data.labels import render
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import BaseModel, write_text
from lora_select.records.digests import key_of

if TYPE_CHECKING:
    from torch import Tensor

LENGTH = 128
TURN = 40
BATCH = 16
MARK = "question-mark-here"
VERSION = 1


def sampled(
    base: BaseModel, tokenizer: Any, count: int, *, seed: int, model: Callable[[], Any], cache: Path
) -> list[TokenRow]:
    """`count` rows of up to 128 tokens that the model sampled at temperature 1: text and chat in turn, text alone without a chat template.

    Kept by the model's digest: they are generated once. Of text every token but the first is a label, of chat the answer.
    """
    file = cache / "self" / f"{key_of({'base': base.digest, 'seed': seed, 'count': count, 'version': VERSION})}.json"
    if file.is_file():
        return [
            TokenRow(row["id"], tuple(row["ids"]), tuple(row["mask"])) for row in json.loads(file.read_text("utf-8"))
        ]
    loaded = model()
    chat = bool(getattr(tokenizer, "chat_template", None))
    texts = _texts(loaded, tokenizer, count - count // 2 if chat else count, seed)
    talks = _talks(loaded, tokenizer, count // 2, seed) if chat else []
    rows = [row for pair in zip(texts, talks, strict=False) for row in pair] + texts[len(talks) :] + talks[len(texts) :]
    file.parent.mkdir(parents=True, exist_ok=True)
    held = [{"id": row.row_id, "ids": list(row.input_ids), "mask": list(row.label_mask)} for row in rows]
    write_text(file, json.dumps(held))
    return rows


def _texts(model: Any, tokenizer: Any, count: int, seed: int) -> list[TokenRow]:
    """From the start token, to the end of the text or 128 tokens; end tokens are kept out, so that there is always text."""
    start = next(
        (
            token
            for token in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id)
            if token is not None
        ),
        0,
    )
    made = _generate(model, [[int(start)]] * count, LENGTH - 1, seed, tokenizer, stop=False)
    rows = [[int(start), *ids] for ids in made]
    return [
        TokenRow(f"self-text-{index}", tuple(ids), (False, *[True] * (len(ids) - 1))) for index, ids in enumerate(rows)
    ]


def _talks(model: Any, tokenizer: Any, count: int, seed: int) -> list[TokenRow]:
    """The model asks itself, and answers: a user's turn sampled after the template's opening, then the assistant's."""
    whole = render.render({"messages": [{"role": "user", "content": MARK}], "tools": None}, tokenizer)
    opening = tokenizer(whole.partition(MARK)[0], add_special_tokens=False)["input_ids"]
    asked = _generate(model, [opening] * count, TURN, seed + 1, tokenizer, stop=True)
    questions = [tokenizer.decode(ids, skip_special_tokens=True).strip() or "Hello" for ids in asked]
    prompts = [
        tokenizer(
            render.render({"messages": [{"role": "user", "content": question}], "tools": None}, tokenizer, prompt=True),
            add_special_tokens=False,
        )["input_ids"]
        for question in questions
    ]
    answers = _generate(model, prompts, LENGTH - TURN, seed + 2, tokenizer, stop=True)
    rows = []
    for index, (question, ids) in enumerate(zip(questions, answers, strict=True)):
        answer = tokenizer.decode(ids, skip_special_tokens=True).strip() or "Yes."
        talk = {
            "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            "tools": None,
        }
        made = tokenize(f"self-chat-{index}", talk, tokenizer, 2 * LENGTH)
        rows += made.rows
    return rows


def _generate(
    model: Any, prompts: list[list[int]], length: int, seed: int, tokenizer: Any, *, stop: bool
) -> list[list[int]]:
    """Sampled continuations at temperature 1 from the whole distribution, each up to an end token where `stop`."""
    import torch

    from lora_select.evaluation.metrics import end_ids
    from lora_select.models import pad_id

    ends, fill = end_ids(model, tokenizer), pad_id(tokenizer)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    made: list[list[int]] = [[] for _ in prompts]
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), torch.inference_mode():
        torch.manual_seed(seed)
        for begin in range(0, len(order), BATCH):
            chosen = order[begin : begin + BATCH]
            inputs = _left_padded([prompts[index] for index in chosen], fill, model.device)
            output = model.generate(
                **inputs,
                max_new_tokens=length,
                min_new_tokens=None if stop else length,
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                pad_token_id=fill,
                eos_token_id=ends or None,
            )
            for index, row in zip(chosen, output[:, inputs["input_ids"].shape[1] :].tolist(), strict=True):
                end = next((place for place, token in enumerate(row) if token in ends), len(row)) if stop else len(row)
                made[index] = row[:end]
    return made


def _left_padded(prompts: list[list[int]], fill: int, device: Any) -> "dict[str, Tensor]":
    """Prompts that end at the same place, with their mask."""
    import torch

    width = max(len(ids) for ids in prompts)
    padded = [[fill] * (width - len(ids)) + ids for ids in prompts]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]
    return {"input_ids": torch.tensor(padded, device=device), "attention_mask": torch.tensor(mask, device=device)}
