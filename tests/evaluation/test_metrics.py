"""Exact match as documented; answers that do not depend on how they were batched; every token that ends a turn."""

from types import SimpleNamespace

import pytest

from lora_select import models
from lora_select.evaluation.metrics import as_json, end_ids, exact_match, generate


@pytest.mark.parametrize(
    ("expected", "answer", "same"),
    [
        ('{"a": [1, 2]}', '{ "a":[1,2] }', True),
        ('{"a": {"b": 1, "c": null}}', '{"a": {"c": null, "b": 1.0}}', True),
        ('{"a": [1, 2]}', '{"a": [2, 1]}', False),
        ('{"a": true}', '{"a": 1}', False),
        ('{"a": 0}', '{"a": false}', False),
        ('{"a": 1}', '{"a": 1} and more', False),
        ('{"a": 1}', '{"a": 1, "b": 2}', False),
        ("[]", "{}", False),
        ("1", "1.0", False),
        ("yes", " yes\n", True),
        ("Yes", "yes", False),
    ],
)
def test_exact_match(expected, answer, same):
    assert exact_match(expected, answer) is same


@pytest.mark.parametrize("text", ["", "word", "3", "[NaN]", '{"a": -Infinity}', "[" * 100_000, '{"a": 1'])
def test_what_is_no_json_answer(text):
    assert as_json(text) is None


@pytest.fixture(scope="module")
def tiny(tiny_model_folder):
    return models.load_model(str(tiny_model_folder)), models.load_tokenizer(str(tiny_model_folder))


def test_answers_do_not_depend_on_the_batch_or_the_order(tiny):
    prompts = ["hello there", "a", "one two three four", "hm", "somewhat longer than all of the others"]
    calls = []
    together = generate(
        *tiny, prompts, max_new_tokens=6, batch_size=4, progress=lambda done, total, what: calls.append((done, total))
    )
    alone = [generate(*tiny, [prompt], max_new_tokens=6, batch_size=1)[0] for prompt in prompts]
    assert together == alone
    assert calls == [(4, 5), (5, 5)]
    backwards = generate(*tiny, prompts[::-1], max_new_tokens=6, batch_size=4)
    assert backwards[::-1] == together


def test_an_answer_ends_at_its_first_end_token(tiny, monkeypatch):
    model, tokenizer = tiny
    free = generate(model, tokenizer, ["hello"], max_new_tokens=6, batch_size=1)[0]
    prompt = tokenizer("hello", return_tensors="pt", add_special_tokens=False)["input_ids"]
    second = int(model.generate(input_ids=prompt, max_new_tokens=2, do_sample=False)[0, -1])
    monkeypatch.setattr(model.generation_config, "eos_token_id", [2, second])
    cut = generate(model, tokenizer, ["hello"], max_new_tokens=6, batch_size=1)[0]
    assert len(cut) < len(free)
    assert free.startswith(cut)


def test_end_tokens_of_tokenizer_model_and_template(tiny_model_folder):
    tokenizer = models.load_tokenizer(str(tiny_model_folder))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    tokenizer.eos_token = "<|endoftext|>"
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 0]))
    assert end_ids(model, tokenizer) == [0, end, 7]
    assert end_ids(SimpleNamespace(), tokenizer) == [0, end]
    tokenizer.chat_template = None
    assert end_ids(SimpleNamespace(), tokenizer) == [0]
    tokenizer.chat_template = "{{ raise_exception('no') }}"
    assert end_ids(SimpleNamespace(), tokenizer) == [0]
