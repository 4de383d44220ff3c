"""Label masks are exact, and the label loss equals the textbook's on full logits in float64."""

import pytest
import torch
from torch.nn import functional

from lora_select import models
from lora_select.data.labels import render
from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow, collate, label_loss, read_rows, write_rows

TURNS = [
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello <|im_end|> you"},
    {"role": "user", "content": "more"},
    {"role": "assistant", "content": "bye"},
]
CALL = {"type": "function", "function": {"name": "area", "arguments": {"base": 10}}}
TOOL = {"type": "function", "function": {"name": "area", "parameters": {"base": "integer"}}}
TOOL_ROW = {"messages": [TURNS[0], {"role": "assistant", "content": "", "tool_calls": [CALL]}], "tools": [TOOL]}


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder):
    return models.load_tokenizer(str(tiny_model_folder))


def labels(made, tokenizer):
    return tokenizer.decode([i for i, m in zip(made.row.input_ids, made.row.label_mask, strict=True) if m])


def test_all_answers_and_their_ends_are_labels(tokenizer):
    row = {"messages": [TURNS[0], {"role": "assistant", "content": "hello"}, *TURNS[2:]], "tools": None}
    made = tokenize("id", row, tokenizer, 1000)
    assert labels(made, tokenizer) == "hello<|im_end|>bye<|im_end|>"
    assert made.labels == 5 + 1 + 3 + 1


def test_plain_text_is_all_labels_but_the_first_token(tokenizer):
    made = tokenize("id", {"messages": [{"role": "text", "content": "abc"}], "tools": None}, tokenizer, 1000)
    assert labels(made, tokenizer) == "bc<|im_end|>"


def test_without_a_template_the_text_opens_as_the_tokenizer_opens_any_text(tokenizer):
    import copy

    from tokenizers.processors import TemplateProcessing

    plain = copy.deepcopy(tokenizer)
    plain.chat_template = None
    row = {"messages": TURNS[:1] + TURNS[3:], "tools": None}
    bare = tokenize("id", row, plain, 1000).row
    plain.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", plain.bos_token_id)]
    )
    made = tokenize("id", row, plain, 1000)
    assert made.row.input_ids == (plain.bos_token_id, *bare.input_ids)
    assert made.row.label_mask == (False, *bare.label_mask)
    assert render.prompt_and_answer(row, plain) == ("<|im_start|>hi\n", "bye")


def test_truncation_is_counted(tokenizer):
    row = {"messages": TURNS[2:], "tools": None}
    whole = tokenize("id", row, tokenizer, 1000)
    cut = tokenize("id", row, tokenizer, whole.length - 3)
    assert cut.labels == whole.labels == 4
    assert sum(cut.row.label_mask) == 2
    assert tokenize("id", row, tokenizer, 5).row is None


@pytest.mark.parametrize("template", ["native", "blind", "none"])
def test_tools_are_never_dropped(tokenizer, template):
    import copy

    tokenizer = copy.deepcopy(tokenizer)
    if template == "blind":
        tokenizer.chat_template = (
            "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
            "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        )
    elif template == "none":
        tokenizer.chat_template = None
    made = tokenize("id", TOOL_ROW, tokenizer, 1000)
    text = tokenizer.decode(made.row.input_ids)
    assert '"parameters"' in text
    assert '"base": "integer"' in text
    answer = labels(made, tokenizer)
    assert "area" in answer
    assert "10" in answer
    assert "integer" not in answer
    prompt, expected = render.prompt_and_answer(TOOL_ROW, tokenizer)
    assert text.startswith(prompt)
    native = '[{"type": "function", "function": {"name": "area", "arguments": {"base": 10}}}]'
    assert expected == (native if template == "native" else '[{"name": "area", "arguments": {"base": 10}}]')


def test_rows_survive_the_disk(tmp_path):
    rows = [TokenRow("a", (1, 2, 3), (False, True, True)), TokenRow("b", (4,), (False,))]
    write_rows(tmp_path / "rows.parquet", rows)
    assert read_rows(tmp_path / "rows.parquet") == rows


def test_padding_id_may_be_a_label():
    batch = collate([TokenRow("a", (5, 2), (False, True)), TokenRow("b", (7, 8, 2), (False, True, True))], pad_id=2)
    assert batch["labels"].tolist() == [[-100, 2, -100], [-100, 8, 2]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]


@pytest.mark.parametrize("blind", [False, True])
def test_label_loss_equals_the_dense_reference(tiny_model_folder, blind, monkeypatch):
    if blind:  # a model that always computes all logits
        monkeypatch.setattr("lora_select.data.labels.tokens._keeps_logits", lambda model: False)
    model = models.load_model(str(tiny_model_folder), dtype="float64")
    generator = torch.Generator().manual_seed(0)
    rows = []
    for length in (4, 17, 9):
        ids = tuple(torch.randint(4, 260, (length,), generator=generator).tolist())
        mask = (False, *(torch.rand(length - 1, generator=generator) < 0.4).tolist())
        rows.append(TokenRow("r", ids, mask))
    batch = collate(rows, pad_id=3)
    with torch.no_grad():
        nll, counts = label_loss(model, batch)
        for index, row in enumerate(rows):
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
            losses = functional.cross_entropy(logits, torch.tensor(row.input_ids[1:]), reduction="none")
            wanted = losses[torch.tensor(row.label_mask[1:])].sum()
            torch.testing.assert_close(nll[index].double(), wanted, rtol=1e-5, atol=1e-5)
            assert counts[index] == sum(row.label_mask)


def test_batch_without_labels_has_no_loss(tiny_model_folder):
    model = models.load_model(str(tiny_model_folder))
    nll, counts = label_loss(model, collate([TokenRow("a", (5, 6), (False, False))], 3))
    assert (nll.item(), counts.item()) == (0.0, 0)
