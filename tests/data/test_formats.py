"""Every format gives the same canonical rows; every fault of a row has a name; wrong columns name the way out."""

import json

import pytest

from lora_select.data.reading import formats
from lora_select.errors import InputError

PAIR = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
SAME = {
    "messages": {"messages": PAIR},
    "messages as JSON text": {"messages": json.dumps(PAIR)},
    "alpaca": {"instruction": "2+2?", "input": "", "output": "4"},
    "sharegpt": {"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    "prompt-completion": {"prompt": "2+2?", "completion": "4"},
    "numbers as answers": {"prompt": "2+2?", "completion": 4},
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_formats_agree(row):
    assert formats.convert(formats.detect(row), row) == {"messages": PAIR, "tools": None}


def test_alpaca_joins_input_and_keeps_system():
    row = {"instruction": "Translate", "input": "Hund", "output": "dog", "system": "Be brief"}
    turns = formats.convert("alpaca", row)["messages"]
    assert [(t["role"], t["content"]) for t in turns] == [
        ("system", "Be brief"),
        ("user", "Translate\n\nHund"),
        ("assistant", "dog"),
    ]


def test_tools_and_calls_are_kept():
    call = {"type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}}
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    row = {"messages": [PAIR[0], {"role": "assistant", "content": None, "tool_calls": [call]}], "tools": [tool]}
    made = formats.convert("messages", row)
    assert made["tools"] == [tool]
    assert made["messages"][1]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("messages", {"messages": []}, "missing field messages"),
        ("messages", {"messages": "["}, "no JSON"),
        ("messages", {"messages": [PAIR[0]]}, "no assistant turn"),
        ("messages", {"messages": PAIR[1:]}, "begins with the answer"),
        ("messages", {"messages": [PAIR[0], {"role": "assistant", "content": " "}]}, "empty answer"),
        ("messages", {"messages": [{"role": "usr", "content": "x"}]}, "unknown role usr"),
        ("messages", {"messages": [{"role": "user", "content": 3}]}, "no text"),
        ("messages", {"messages": PAIR, "tools": "{}x"}, "no JSON"),
        ("messages", {"messages": PAIR, "tools": [1]}, "no list of functions"),
        ("sharegpt", {"conversations": [{"from": "robot", "value": "x"}]}, "unknown role robot"),
        ("prompt-completion", {"prompt": "x", "completion": None}, "missing field completion"),
        ("prompt-completion", {"prompt": " ", "completion": "x"}, "empty prompt"),
        ("prompt-completion", {"prompt": ["x"], "completion": "x"}, "no text"),
        ("text", {"text": "  "}, "empty text"),
    ],
)
def test_faults_have_names(name, row, reason):
    with pytest.raises(formats.RowError, match=reason):
        formats.convert(name, row)


def test_wrong_columns_name_the_nearest_and_all_formats():
    with pytest.raises(InputError) as caught:
        formats.detect({"promt": 1, "completion": 2})
    message = str(caught.value)
    assert "did you mean `prompt` by `promt`?" in message
    assert all(name in message for name in formats.FORMATS)


def test_named_format_must_fit():
    with pytest.raises(
        InputError, match="alpaca, which needs instruction, output/response/answer/completion; the columns are prompt"
    ):
        formats.check("alpaca", {"prompt": 1})
