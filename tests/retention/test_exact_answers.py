"""Answers of the user's own chats: right by the base, wrong by an adapter that broke it, and left out where no answer has one right form."""

import pytest
import torch

from lora_select import models
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow, collate
from lora_select.retention import form_losses, forms
from lora_select.retention.forms import Update

ANSWERS = {"is it wet?": "yes", "is it dry?": "no", "how many?": "seven", "who?": "me"}


@pytest.fixture(scope="module")
def taught(tiny_model_folder):
    """A tiny model whose weights were all trained until it knows four answers."""
    tokenizer, model = models.load_tokenizer(str(tiny_model_folder)), models.load_model(str(tiny_model_folder))
    chats = [
        {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}], "tools": None}
        for q, a in ANSWERS.items()
    ]
    rows = [tokenize(f"r{n}", chat, tokenizer, 200).row for n, chat in enumerate(chats)]
    model.requires_grad_(True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    batch = collate(rows, models.pad_id(tokenizer))
    for _ in range(200):
        loss = model(**batch, use_cache=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if loss < 0.02:
            break
    return model.eval(), tokenizer, rows


def test_what_an_adapter_breaks_is_seen_in_the_answers(taught):
    model, tokenizer, rows = taught
    g = torch.Generator().manual_seed(0)
    layers = forms.linear_modules(model)
    broken = {name: Update(torch.randn(module.weight.shape, generator=g), None) for name, module in layers.items()}
    nothing = {name: Update(torch.zeros(module.weight.shape), None) for name, module in layers.items()}
    found = form_losses.exact(model, {"raw": broken, "filter": nothing}, rows, tokenizer)
    assert found["base"] == found["filter"] == (1.0,) * 4
    assert sum(found["raw"]) < 4
    assert len(form_losses.exact(model, {}, rows, tokenizer, most=3)["base"]) == 3


@pytest.mark.parametrize("kind", ["two answers", "plain text", "long"])
def test_rows_without_one_right_answer_are_not_asked(taught, kind):
    model, tokenizer, rows = taught
    ids, mask = rows[0].input_ids, rows[0].label_mask
    more = tuple(tokenizer("\nand more" * 9, add_special_tokens=False)["input_ids"])
    begin = mask.index(True)
    given = {
        "two answers": TokenRow("two", (*ids, *ids), (*mask, *mask)),
        "plain text": TokenRow("text", ids, (False, *[True] * (len(ids) - 1))),
        "long": TokenRow("long", (*ids[:begin], *more), (*mask[:begin], *[True] * len(more))),
    }[kind]
    assert form_losses.exact(model, {}, [given, given], tokenizer) == {}
