"""The invariant of labels: what is learnt is the answer, from its first token to a token that ends it, or the row is left out."""

import copy

import pytest
from byte_tokenizer import byte_tokenizer

from lora_select.data.labels import render
from lora_select.data.labels.answers import CLOSED, ENDED, TRIMMED
from lora_select.data.labels.tokenize import NO_STOP, SEAM, SEVERAL, tokenize

IM = "<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
ASK = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"


def with_template(template, tokenizer=None):
    made = copy.deepcopy(tokenizer or byte_tokenizer())
    made.chat_template = template
    return made


def row(*turns, tools=None):
    roles = ("user", "assistant")
    messages = [t if isinstance(t, dict) else {"role": roles[i % 2], "content": t} for i, t in enumerate(turns)]
    return {"messages": messages, "tools": tools}


def learnt(made, tokenizer):
    return [tokenizer.decode([i for i, m in zip(r.input_ids, r.label_mask, strict=True) if m]) for r in made.rows]


def test_the_first_token_is_learnt_where_it_spans_the_seam():
    from tokenizers import AddedToken

    tokenizer = with_template(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}"
    )
    tokenizer.add_tokens([AddedToken(" yes", special=False)])
    made = tokenize("id", row("q", "yes"), tokenizer, 1000)
    assert learnt(made, tokenizer) == [" yes<|im_end|>"]
    assert SEAM in made.notes
    assert SEAM not in tokenize("id", row("q", "no"), tokenizer, 1000).notes


def test_a_turn_of_weight_zero_is_context():
    tokenizer = byte_tokenizer()
    draft = {"role": "assistant", "content": "draft", "train": False}
    made = tokenize("id", row("q", draft, "better", "good"), tokenizer, 1000)
    assert learnt(made, tokenizer) == ["good<|im_end|>"]
    assert "draft" in tokenizer.decode(made.row.input_ids)


def test_a_cut_thought_is_learnt_as_the_row_has_it():
    cut = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'].split('</think>')[-1] }}<|im_end|>\n{% endfor %}"
        + ASK
    )
    tokenizer = with_template(cut)
    answer = "<think>because</think>\nfour"
    made = tokenize("id", row("q", answer, "more", answer), tokenizer, 1000)
    assert learnt(made, tokenizer) == [answer + "<|im_end|>"] * 2
    assert SEVERAL in made.notes


def test_an_opened_thought_is_closed_or_goes_on():
    tokenizer = with_template(
        "{% for m in messages %}"
        + IM
        + "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    plain = tokenize("id", row("q", "four"), tokenizer, 1000)
    assert learnt(plain, tokenizer) == ["\n</think>\n\nfour<|im_end|>"]
    assert CLOSED in plain.notes
    thought = tokenize("id", row("q", "<think>because</think>four"), tokenizer, 1000)
    assert learnt(thought, tokenizer) == ["because</think>four<|im_end|>"]
    assert CLOSED not in thought.notes


@pytest.mark.parametrize("eos", ["<|im_end|>", None])
def test_an_answer_without_an_end_gets_one_or_is_named(eos):
    tokenizer = with_template(
        "{% for m in messages %}## {{ m['role'] }}\n{{ m['content'] }}\n\n{% endfor %}{% if add_generation_prompt %}## assistant\n{% endif %}"
    )
    tokenizer.eos_token = eos
    made = tokenize("id", row("q", "a", "r", "b"), tokenizer, 1000)
    if eos:
        assert learnt(made, tokenizer) == ["a<|im_end|>", "b<|im_end|>"]
        assert ENDED in made.notes
    else:
        assert [text.strip() for text in learnt(made, tokenizer)] in (["a", "b"], ["ab"])
        assert NO_STOP in made.notes


LOSING = {
    "system": "{% for m in messages if m['role'] != 'system' %}" + IM + "{% endfor %}" + ASK,
    "user": "{% for m in messages if m['role'] != 'user' %}" + IM + "{% endfor %}" + ASK,
    "assistant": "{% for m in messages if m['role'] != 'assistant' %}" + IM + "{% endfor %}" + ASK,
}


@pytest.mark.parametrize("lost", LOSING)
def test_a_lost_turn_is_named(lost):
    system = {"role": "system", "content": "a"}  # "a" stands in "assistant": its place counts, not the letter
    made = tokenize(
        "id", {"messages": [system, *row("a", "a")["messages"]], "tools": None}, with_template(LOSING[lost]), 1000
    )
    assert made.rows == ()
    assert lost in made.fault


def test_an_answer_that_the_template_shortens_is_left_out():
    tokenizer = with_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'][:9] }}<|im_end|>\n{% endfor %}" + ASK
    )
    assert tokenize("id", row("q", "123456789"), tokenizer, 1000).fault is None
    made = tokenize("id", row("q" * 20, "a"), tokenizer, 1000)
    assert "user" in made.fault


@pytest.mark.parametrize("written", ["m['content'] | e", "m['content'] | tojson", "m['content'] | upper"])
def test_an_answer_that_the_template_rewrites_is_left_out(written):
    tokenizer = with_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ "
        + written
        + " if m['role'] == 'assistant' else m['content'] }}<|im_end|>\n{% endfor %}"
        + ASK
    )
    fault = tokenize("id", row("q", 'a < "b"\n'), tokenizer, 1000).fault
    assert "does not write the answer" in fault or "loses the assistant turn" in fault


def test_trimming_is_counted():
    tokenizer = with_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] | trim }}<|im_end|>\n{% endfor %}" + ASK
    )
    made = tokenize("id", row("q", "  four\n"), tokenizer, 1000)
    assert learnt(made, tokenizer) == ["four<|im_end|>"]
    assert TRIMMED in made.notes
    assert TRIMMED not in tokenize("id", row("q", "four"), tokenizer, 1000).notes


def test_a_template_that_raises_gives_its_own_words():
    tokenizer = with_template("{{ raise_exception('never today') }}")
    assert tokenize("id", row("q", "a"), tokenizer, 1000).fault == "the chat template refuses it: never today"


def test_half_an_emoji_is_a_fault_of_its_row():
    assert "surrogate" in tokenize("id", row("q", "\ud83d"), byte_tokenizer(), 1000).fault


def test_a_character_that_the_tokenizer_does_not_know_is_a_fault_of_its_row():
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", "<eos>", "q", "a", "user", "assistant", "\n"]
    plain = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="[UNK]"))
    plain.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="[UNK]", eos_token="<eos>")
    tokenizer.add_special_tokens({"eos_token": "<eos>"})
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}\n{{ m['content'] }}<eos>{% endfor %}{% if add_generation_prompt %}assistant\n{% endif %}"
    assert tokenize("id", row("q", "a"), tokenizer, 1000).fault is None
    assert "no token for a character" in tokenize("id", row("q", "é"), tokenizer, 1000).fault


def test_a_developer_turn_goes_to_templates_that_know_it():
    developer = {"role": "developer", "content": "Be brief"}
    turns = {"messages": [developer, *row("q", "a")["messages"]], "tools": None}
    knows = with_template("{% for m in messages %}" + IM + "{% endfor %}" + ASK)
    assert "developer\nBe brief" in render.render(turns, knows)
    not_ = with_template(
        "{% for m in messages if m['role'] in ['system', 'user', 'assistant'] %}" + IM + "{% endfor %}" + ASK
    )
    assert "system\nBe brief" in render.render(turns, not_)


CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": "1"}}}
TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}}


def called(**more):
    return row("q", {"role": "assistant", "content": "", "tool_calls": [CALL | more]}, tools=[TOOL])


def test_the_rows_own_tools_are_tried():
    """A template that reads what a tool without a description does not have."""
    template = (
        "{% for t in tools or [] %}[T]{{ t.function.name + t.function.description }}{% endfor %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for c in m.tool_calls or [] %}[C]{{ c.function.name }}{{ c.function.arguments | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
        + ASK
    )
    tokenizer = with_template(template)
    made = tokenize("id", called(), tokenizer, 1000)
    assert learnt(made, tokenizer) == ['[C]f{"x": "1"}<|im_end|>']
    assert made.notes == ()
    bare = {**called(), "tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}
    assert "[C]f" in learnt(tokenize("id", bare, tokenizer, 1000), tokenizer)[0]


def test_ids_reach_the_template_and_are_made_only_where_the_row_has_none():
    template = (
        "{% for m in messages %}{% for c in m.tool_calls or [] %}{% if c.id | length != 9 %}{{ raise_exception('nine characters') }}{% endif %}{% endfor %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% for c in m.tool_calls or [] %}{{ c.function.name }}{{ c.function.arguments | tojson }}{{ c.id }}{% endfor %}<|im_end|>\n{% endfor %}"
        + ASK
    )
    tokenizer = with_template("{% if tools %}{{ tools | tojson }}{% endif %}" + template)
    own = tokenize("id", called(id="abc000001"), tokenizer, 1000)
    assert learnt(own, tokenizer) == ['f{"x": "1"}abc000001<|im_end|>']
    assert "nine characters" in tokenize("id", called(id="short"), tokenizer, 1000).fault
    made = tokenize("id", called(), tokenizer, 1000)
    assert made.fault is None
    assert any("without an id" in note for note in made.notes)


def test_reasoning_is_kept_in_the_models_form_or_in_the_content():
    turn = {"role": "assistant", "content": "four", "reasoning_content": "because"}
    native = with_template(
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m.reasoning_content %}[R]{{ m.reasoning_content }}[/R]{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        + ASK
    )
    assert learnt(tokenize("id", row("q", turn), native, 1000), native) == ["[R]because[/R]four<|im_end|>"]
    none = with_template("{% for m in messages %}" + IM + "{% endfor %}" + ASK)
    made = tokenize("id", row("q", turn), none, 1000)
    assert learnt(made, none) == ["<think>\nbecause\n</think>\n\nfour<|im_end|>"]
    assert any("reasoning" in note for note in made.notes)


def test_long_text_is_cut_without_a_label_lost():
    tokenizer = byte_tokenizer()
    text = {"messages": [{"role": "text", "content": "abcdefghij"}], "tools": None}
    whole = tokenize("id", text, tokenizer, 1000)
    cut = tokenize("id", text, tokenizer, 4)
    assert [len(r.input_ids) for r in cut.rows] == [4, 4, 4, 2]
    assert sum(sum(r.label_mask) for r in cut.rows) == whole.labels
    assert "".join(learnt(cut, tokenizer)) == "bcdefghij<|im_end|>"


def test_rows_of_one_shape_share_what_is_found_and_none_is_judged_by_another():
    """The second row has what the first one's form cannot hold."""
    template = (
        "{% for m in messages %}{% if 'x' in m['content'] %}{{ raise_exception('no x') }}{% endif %}"
        + IM
        + "{% endfor %}"
        + ASK
    )
    tokenizer = with_template(template)
    faults = [tokenize("id", row(q, "a"), tokenizer, 1000).fault for q in ("q", "x", "q")]
    assert faults == [None, "the chat template refuses it: no x", None]
