"""Every kind of row on every kind of template: learnt exactly, or left out with the template's own reason. docs/data.md has the table."""

import re
from pathlib import Path

import pytest
from chat_templates import MODELS, TEMPLATES, tokenizer_of

from lora_select.data.labels import ends
from lora_select.data.labels.tokenize import tokenize

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "weather of a town",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}},
    },
}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Oslo"}}, "id": "abc000001"}
SYSTEM = {"role": "system", "content": "You answer in French."}
RESULT = {"role": "tool", "content": "12 C", "tool_call_id": "abc000001", "name": "weather"}


def user(text):
    return {"role": "user", "content": text}


def answer(text, **more):
    return {"role": "assistant", "content": text, **more}


CALLED = answer("", tool_calls=[CALL])
ROWS = {
    "one turn": ([user("hello"), answer("good day")], None),
    "system": ([SYSTEM, user("hello"), answer("good day")], None),
    "several turns": ([user("hello"), answer("good day"), user("and now?"), answer("good night")], None),
    "`<think>` in content": ([user("hello"), answer("<think>because of the hour</think>\ngood day")], None),
    "call": ([user("how warm?"), CALLED], [TOOL]),
    "call, result, answer": ([user("how warm?"), CALLED, RESULT, answer("twelve degrees")], [TOOL]),
    "two user turns": ([user("hello"), user("are you in?"), answer("good day")], None),
}
ALTERNATE = "Conversation roles must alternate"
REFUSED = {
    ("alternating", "system"): "System role not supported",
    ("alternating", "call, result, answer"): ALTERNATE,
    ("alternating", "two user turns"): ALTERNATE,
    ("system-in-user", "call, result, answer"): ALTERNATE,
    ("system-in-user", "two user turns"): ALTERNATE,
    ("tail", "call, result, answer"): "loses text of the tool turn",
    ("parts-of-two", "call, result, answer"): "Only user and assistant roles are supported",
}
NATIVE_CALLS = {
    "im",
    "one-call",
    "empty-thought",
    "open-thought",
    "joined-thought",
    "cut-thought",
    "channels",
    "endless",
    "ids",
}
IN_SEVERAL_TEXTS = {
    "empty-thought",
    "open-thought",
    "cut-thought",
    "cut-thought-alone",
    "channels",
    "endless",
    "joined-thought",
}


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    return {name: tokenizer_of(name, tmp_path_factory.mktemp(name)) for name in TEMPLATES}


def made_of(tokenizer, kind):
    messages, tools = ROWS[kind]
    return tokenize("id", {"messages": messages, "tools": tools}, tokenizer, 10_000)


def runs(row):
    """The label ids of a token row, one list for each stretch of labels."""
    found, open_run = [], False
    for token, label in zip(row.input_ids, row.label_mask, strict=True):
        if label and not open_run:
            found.append([])
        if label:
            found[-1].append(token)
        open_run = label
    return found


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("name", TEMPLATES)
def test_labels_are_the_answers_and_their_ends(tokenizers, name, kind):
    tokenizer = tokenizers[name]
    made = made_of(tokenizer, kind)
    if (name, kind) in REFUSED:
        assert made.rows == ()
        assert REFUSED[name, kind] in made.fault
        return
    assert made.fault is None
    messages, _ = ROWS[kind]
    learnt = [run for row in made.rows for run in runs(row)]
    answers = [message for message in messages if message["role"] == "assistant"]
    assert len(learnt) == len(answers)
    stops = ends.stop_ids(tokenizer)
    for ids, message in zip(learnt, answers, strict=True):
        text = tokenizer.decode(ids)
        assert ids[-1] in stops
        wanted = [*message["content"].replace("<think>", "").split("</think>")]
        wanted += ["weather", "Oslo"] if message.get("tool_calls") else []
        places = [text.find(part.strip()) for part in wanted]
        assert -1 not in places
        assert places == sorted(places)
        others = {m["content"] for m in messages if m is not message} - {""}
        assert not any(other in text for other in others)
    for row in made.rows:
        whole = tokenizer.decode(row.input_ids)
        assert all(m["content"] in whole for m in messages[: messages.index(answers[0])])


@pytest.mark.parametrize("name", TEMPLATES)
def test_calls_are_in_the_models_own_form_where_it_has_one(tokenizers, name):
    made = made_of(tokenizers[name], "call")
    as_json = any("as JSON into the answer" in note for note in made.notes)
    assert as_json == (name not in NATIVE_CALLS)


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_context_of_an_answer_is_the_prompt_that_it_is_generated_from(tokenizers, name):
    """Each learnt answer follows, token by token, what the template gives at generation."""
    tokenizer = tokenizers[name]
    made = made_of(tokenizer, "several turns")
    messages, _ = ROWS["several turns"]
    parts = "parts" in name
    given = [m | {"content": [{"type": "text", "text": m["content"]}]} for m in messages] if parts else messages
    last = made.rows[-1]
    prompt = tokenizer.apply_chat_template(given[:3], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert list(last.input_ids[: len(ids)]) == ids
    assert last.label_mask[len(ids)]
    assert not any(last.label_mask[len(ids) - 4 : len(ids)])
    assert (len(made.rows) > 1) == (name in IN_SEVERAL_TEXTS)


def table(tokenizers) -> str:
    """The table of docs/data.md."""
    lines = [f"| template as of | {' | '.join(ROWS)} |", f"|{'---|' * (len(ROWS) + 1)}"]
    for name, models in MODELS.items():
        tokenizer = tokenizers[name]
        lines.append(f"| {models} | {' | '.join(cell(made_of(tokenizer, kind)) for kind in ROWS)} |")
    return "\n".join(lines)


def cell(made) -> str:
    if made.fault is not None:
        return "left out: " + made.fault.removeprefix("the chat template ").removeprefix("refuses it: ")
    said = [f"learnt in {len(made.rows)} texts" if len(made.rows) > 1 else "learnt"]
    said += ["calls as JSON"] if any("as JSON into" in note for note in made.notes) else []
    said += ["tools as JSON"] if any("described as JSON" in note for note in made.notes) else []
    said += ["empty thought closed"] if any("to close it at once" in note for note in made.notes) else []
    said += ["end token added"] if any("is put there" in note for note in made.notes) else []
    return ", ".join(said)


def test_the_table_in_the_docs_is_this_one(tokenizers):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- templates -->\n(.*?)\n<!-- /templates -->", page, re.DOTALL)
    assert found is not None, f"put this between the marks in docs/data.md:\n{table(tokenizers)}"
    assert found.group(1) == table(tokenizers)
