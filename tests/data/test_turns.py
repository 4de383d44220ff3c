"""What a row means, whatever way it is written; and that no key of it is lost without a word."""

import json
from collections import Counter

import pytest

from lora_select.data.reading import formats
from lora_select.data.reading.formats import RowOptions, convert_row, detect, mapped
from lora_select.errors import InputError

USER, ANSWER = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}
PAIR = [USER, ANSWER]
SYSTEM = {"role": "system", "content": "Be brief"}
CALL = {"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {"x": {}}}}}


def messages_of(row, options=None):
    return convert_row(detect(row), row, options or RowOptions()).content["messages"]


SAME = {
    "question and answer": {"question": "2+2?", "answer": "4"},
    "query and response": {"query": "2+2?", "response": "4"},
    "instruction and response": {"instruction": "2+2?", "response": "4"},
    "input and output": {"input": "2+2?", "output": "4"},
    "prompt as messages": {"prompt": [USER], "completion": [ANSWER]},
    "prompt as messages in JSON text": {"prompt": json.dumps([USER]), "completion": "4"},
    "completion as messages": {"prompt": "2+2?", "completion": [ANSWER]},
    "conversations with role and content": {"conversations": PAIR},
    "messages with from and value": {"messages": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]},
    "role aliases": {"conversation": [{"role": "Human", "content": "2+2?"}, {"role": "model", "content": "4"}]},
    "parts of text": {"messages": [{"role": "user", "content": [{"type": "text", "text": "2+"}, "2?"]}, ANSWER]},
    "keys that hold nothing": {
        "messages": [USER, ANSWER | {"tool_calls": None, "refusal": None}],
        "tools": [],
        "x": None,
    },
}


@pytest.mark.parametrize("row", SAME.values(), ids=SAME)
def test_spellings_of_one_row_agree(row):
    made = convert_row(detect(row), row, RowOptions())
    assert made.content == {"messages": PAIR, "tools": None}
    assert made.unused == ()


USED = {
    "system beside messages": ({"system": "Be brief", "messages": PAIR}, [SYSTEM, *PAIR]),
    "system beside prompt": ({"system": "Be brief", "prompt": "2+2?", "completion": "4"}, [SYSTEM, *PAIR]),
    "the same system twice": ({"system": "Be brief", "messages": [SYSTEM, *PAIR]}, [SYSTEM, *PAIR]),
    "history": (
        {"instruction": "2+2?", "output": "4", "history": [["1+1?", "2"]]},
        [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}, *PAIR],
    ),
    "context": (
        {"instruction": "add", "context": "2 and 2", "output": "4"},
        [{"role": "user", "content": "add\n\n2 and 2"}, ANSWER],
    ),
    "context before a question": (
        {"question": "sum?", "context": "2 and 2", "answer": "4"},
        [{"role": "user", "content": "2 and 2\n\nsum?"}, ANSWER],
    ),
    "input beside prompt": (
        {"prompt": "add", "input": "2 and 2", "completion": "4"},
        [{"role": "user", "content": "add\n\n2 and 2"}, ANSWER],
    ),
    "answers within a prompt are context": (
        {"prompt": [USER, ANSWER, USER], "completion": [ANSWER]},
        [USER, ANSWER | {"train": False}, USER, ANSWER],
    ),
    "weight 0": ({"messages": [USER, ANSWER | {"weight": 0}, *PAIR]}, [USER, ANSWER | {"train": False}, *PAIR]),
    "train false": ({"messages": [USER, ANSWER | {"train": False}, *PAIR]}, [USER, ANSWER | {"train": False}, *PAIR]),
    "reasoning": (
        {"messages": [USER, ANSWER | {"reasoning_content": "r"}]},
        [USER, ANSWER | {"reasoning_content": "r"}],
    ),
    "thinking": ({"messages": [USER, ANSWER | {"thinking": "r"}]}, [USER, ANSWER | {"reasoning_content": "r"}]),
    "a part that thinks": (
        {
            "messages": [
                USER,
                {
                    "role": "assistant",
                    "content": [{"type": "thinking", "thinking": "r"}, {"type": "text", "text": "4"}],
                },
            ]
        },
        [USER, ANSWER | {"reasoning_content": "r"}],
    ),
    "ids": (
        {
            "messages": [
                USER,
                ANSWER | {"tool_calls": [CALL | {"id": "i"}]},
                {"role": "tool", "tool_call_id": "i", "content": "1"},
                ANSWER,
            ]
        },
        [
            USER,
            ANSWER | {"tool_calls": [CALL | {"id": "i"}]},
            {"role": "tool", "content": "1", "tool_call_id": "i"},
            ANSWER,
        ],
    ),
    "a result that is an object": (
        {"messages": [USER, ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": {"t": 12}}, ANSWER]},
        [USER, ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": '{"t": 12}'}, ANSWER],
    ),
    "function_call": (
        {
            "messages": [
                USER,
                ANSWER | {"function_call": {"name": "f", "arguments": '{"x": 1}'}},
                {"role": "function", "name": "f", "content": "1"},
                ANSWER,
            ]
        },
        [USER, ANSWER | {"tool_calls": [CALL]}, {"role": "tool", "content": "1", "name": "f"}, ANSWER],
    ),
    "ShareGPT's call and observation": (
        {
            "conversations": [
                {"from": "human", "value": "2+2?"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "1"},
                {"from": "gpt", "value": "4"},
            ]
        },
        [USER, {"role": "assistant", "content": "", "tool_calls": [CALL]}, {"role": "tool", "content": "1"}, ANSWER],
    ),
}


@pytest.mark.parametrize(("row", "expected"), USED.values(), ids=USED)
def test_what_changes_meaning_is_used(row, expected):
    made = convert_row(detect(row), row, RowOptions())
    assert made.content["messages"] == expected
    assert made.unused == ()


@pytest.mark.parametrize("given", [TOOL, [TOOL], json.dumps([TOOL]), TOOL["function"], json.dumps(TOOL["function"])])
@pytest.mark.parametrize("key", ["tools", "functions"])
def test_tools_are_one_list_whatever_way_they_are_written(key, given):
    assert formats.convert("messages", {"messages": PAIR, key: given})["tools"] == [TOOL]


def test_arguments_keep_their_order():
    arguments = {"z": 1, "a": 2}
    call = {"function": {"name": "f", "arguments": json.dumps(arguments)}}
    made = messages_of({"messages": [USER, ANSWER | {"tool_calls": [call]}]})
    assert list(made[1]["tool_calls"][0]["function"]["arguments"]) == ["z", "a"]


def test_what_a_table_filled_in_is_taken_out():
    filled = {"type": "function", "function": {"name": "f", "arguments": {"x": 1, "of_another_tool": None}}}
    tool = {
        "type": "function",
        "function": {
            "name": "f",
            "parameters": {"type": "object", "properties": {"x": {"type": "integer", "enum": None}, "y": None}},
        },
    }
    row = {"messages": [USER, ANSWER | {"tool_calls": [filled]}], "tools": [tool]}
    made = formats.convert("messages", row)
    assert made["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": 1}
    assert made["tools"][0]["function"]["parameters"]["properties"] == {"x": {"type": "integer"}}
    assert formats.without_nulls({"a": None, "b": [{"c": None, "d": 0}]}) == {"b": [{"d": 0}]}


def test_a_null_that_is_an_argument_of_the_tool_stays():
    call = {"type": "function", "function": {"name": "f", "arguments": {"x": None}}}
    made = formats.convert("messages", {"messages": [USER, ANSWER | {"tool_calls": [call]}], "tools": [TOOL]})
    assert made["messages"][1]["tool_calls"][0]["function"]["arguments"] == {"x": None}


def test_keys_that_are_not_used_are_named():
    row = {"messages": [USER | {"timestamp": 1}, ANSWER], "source": "web", "history": [["a", "b"]]}
    made = convert_row("messages", row, RowOptions())
    assert set(made.unused) == {"source", "history", "messages[].timestamp"}
    said = formats.sentences("messages", Counter({"history": 40}), Counter())
    assert said == ("`history` in 40 rows is not used by format messages",)


def test_the_user_maps_and_ignores_columns():
    options = RowOptions(columns={"prompt": "q", "completion": "a"}, ignore=frozenset({"source"}))
    row = mapped({"q": "2+2?", "a": "4", "source": "web"}, options)
    made = convert_row(detect(row), row, options)
    assert made == formats.Converted({"messages": PAIR, "tools": None}, (), ())
    with pytest.raises(InputError) as caught:
        mapped({"q": "2+2?"}, options)
    assert "dataset.columns" in str(caught.value)


def test_a_key_of_a_turn_can_be_ignored_on_purpose_too():
    row = {"messages": [USER, ANSWER | {"refusal": "r", "audio": "a"}]}
    assert convert_row("messages", row, RowOptions()).unused == ("messages[].refusal", "messages[].audio")
    assert convert_row("messages", row, RowOptions(ignore=frozenset({"messages[].audio"}))).unused == (
        "messages[].refusal",
    )


def test_a_thought_in_the_content_is_dropped_too():
    said = ("<think>why</think>\n\nyes", "write </think> to close it", "<think>alone</think>")
    rows = [{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": text}]} for text in said]
    drop = RowOptions(reasoning="drop")
    made = [convert_row("messages", row, drop) for row in rows[:2]]
    assert [item.content["messages"][1]["content"] for item in made] == ["yes", said[1]]
    assert [len(item.notes) for item in made] == [1, 0]
    assert convert_row("messages", rows[0], RowOptions()).content["messages"][1]["content"] == said[0]
    with pytest.raises(formats.RowError, match="empty answer"):
        convert_row("messages", rows[2], drop)


def test_reasoning_is_dropped_and_the_last_answer_alone_learnt_where_the_user_says_so():
    row = {"messages": [USER, ANSWER | {"reasoning_content": "r"}, *PAIR]}
    made = convert_row("messages", row, RowOptions(reasoning="drop", learn="last"))
    assert made.content["messages"] == [USER, ANSWER | {"train": False}, *PAIR]
    assert len(made.notes) == 1


@pytest.mark.parametrize(
    ("row", "word"),
    [
        ({"prompt": "x", "chosen": "a", "rejected": "b"}, "DPO"),
        ({"chosen": PAIR, "rejected": PAIR}, "DPO"),
        ({"prompt": "x", "completion": "a", "label": True}, "KTO"),
        ({"prompt": "x", "completion": "a", "label": "false"}, "KTO"),
    ],
)
def test_preferences_are_recognised_and_refused(row, word):
    with pytest.raises(InputError) as caught:
        detect(row)
    assert word in str(caught.value)


def test_a_label_that_is_no_judgement_is_a_column_like_any():
    row = {"prompt": "x", "completion": "a", "label": "sport"}
    assert detect(row) == "prompt-completion"
    assert convert_row("prompt-completion", row, RowOptions()).unused == ("label",)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (
            {"conversations": [{"from": ["human"], "value": "x"}, {"from": "gpt", "value": "y"}]},
            "a role that is no text",
        ),
        ({"messages": [{"role": "user", "content": None}, ANSWER]}, "empty prompt"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}, ANSWER]}, "image_url"),
        ({"messages": [{"role": "user", "content": [{"type": "input_audio"}]}, ANSWER]}, "input_audio"),
        ({"messages": PAIR, "images": ["a.png"]}, "column images"),
        ({"messages": ["x", ANSWER]}, "no object"),
        ({"messages": {"role": "user"}}, "no list of messages"),
        ({"messages": [USER, ANSWER | {"weight": 0}]}, "no turn is learnt"),
        ({"messages": [USER, ANSWER | {"weight": "much"}]}, "weight"),
        ({"messages": [USER, ANSWER | {"tool_calls": [{"function": {"arguments": {}}}]}]}, "without a function name"),
        ({"messages": [USER, ANSWER | {"tool_calls": 3}]}, "tool_calls is no list"),
        ({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, "a tool call in a user turn"),
        ({"messages": [USER, ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]}]}, "no object"),
        ({"messages": PAIR, "tools": [{}]}, "a tool without a name"),
        ({"messages": [USER, {"role": "assistant", "content": "\ud83d"}]}, "surrogate"),
        (
            {
                "messages": [
                    USER,
                    ANSWER | {"tool_calls": [{"function": {"name": "f", "arguments": {"x": float("nan")}}}]},
                ]
            },
            "NaN",
        ),
        ({"instruction": "x", "output": "y", "history": [["a"]]}, "no list of pairs"),
        ({"prompt": [USER], "completion": [3]}, "no text"),
    ],
)
def test_odd_rows_are_rejected_with_a_reason(row, reason):
    with pytest.raises(formats.RowError) as caught:
        formats.convert(detect(row), row)
    assert reason in str(caught.value)


ODD = [
    None,
    3,
    2.5,
    True,
    "",
    "x",
    [],
    {},
    [None],
    [[]],
    {"role": "user"},
    float("nan"),
    "\ud83d",
    [{"role": "user", "content": 1}],
    ["a", {"type": "text"}],
]


@pytest.mark.parametrize("name", formats.FORMATS)
def test_any_value_in_any_place_is_a_row_or_a_reason(name):
    """Each column and each key of a turn with each odd value: converted or refused by a reason, never another error."""
    keys = (
        "messages",
        "conversations",
        "prompt",
        "completion",
        "instruction",
        "output",
        "text",
        "tools",
        "system",
        "history",
        "context",
    )
    turn_keys = (
        "role",
        "content",
        "tool_calls",
        "function_call",
        "weight",
        "reasoning_content",
        "name",
        "tool_call_id",
    )
    base = {
        "messages": PAIR,
        "conversations": PAIR,
        "prompt": "p",
        "completion": "c",
        "instruction": "i",
        "output": "o",
        "text": "t",
    }
    rows = [base | {key: value} for key in keys for value in ODD]
    rows += [
        base | {"messages": [USER, ANSWER | {key: value}], "conversations": [USER | {key: value}, ANSWER]}
        for key in turn_keys
        for value in ODD
    ]
    kept = refused = 0
    for row in rows:
        try:
            made = convert_row(name, row, RowOptions())
            json.dumps(made.content, allow_nan=False).encode()
            kept += 1
        except formats.RowError as error:
            refused += bool(str(error))
    assert kept + refused == len(rows)
    assert kept
    assert refused
