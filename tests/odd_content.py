"""Odd and bad contents of one file: JSON as it is really written, encodings, tables, and rows that cannot be used."""

import json

from odd_made import (
    CHAT,
    DEEP,
    JSONL,
    PAIRS,
    N,
    arrow,
    counted,
    far_date,
    lines,
    no_text,
    one,
    parquet,
    table,
    twice_named,
)


def json_shapes():
    """JSON as it is really written."""
    yield one("r.json", lines(PAIRS), N, title="json that is JSON lines")
    yield one("r.jsonl", json.dumps(PAIRS), N, title="jsonl that is one list")
    yield one("r.jsonl", json.dumps(PAIRS, indent=2), N, title="jsonl that is an indented list")
    yield one("r.jsonl", lines(json.dumps(row, indent=2) for row in PAIRS), N, title="jsonl of indented objects")
    yield one("r.json", lines(json.dumps(row, indent=2) for row in PAIRS), N, title="json of indented objects")
    yield one("r.json", json.dumps({"rows": PAIRS}), N, title="object with one list")
    yield one("r.json", json.dumps({"version": "1.0", "data": PAIRS}), N, title="object with a list and more")
    yield one(
        "r.json",
        json.dumps({"prompt": [r["prompt"] for r in PAIRS], "completion": [r["completion"] for r in PAIRS]}),
        N,
        title="object of columns",
    )
    yield one(
        "r.json",
        json.dumps({k: {str(i): r[k] for i, r in enumerate(PAIRS)} for k in ("prompt", "completion")}),
        N,
        title="pandas' columns",
    )
    yield one("r.json", json.dumps({"train": PAIRS[:4], "test": PAIRS[4:]}), N, title="object of splits")
    yield one("r.json", json.dumps(CHAT[0]), 1, title="one row")
    yield one("r.json", json.dumps(PAIRS[0]), 1, title="one pair")
    yield one(
        "r.json",
        json.dumps({"messages": [row["messages"] for row in CHAT]}),
        N,
        title="object with a column of conversations",
    )
    yield one("r.json", "[" + ",".join(json.dumps(r) for r in PAIRS) + ",]", N, title="a comma after the last")
    yield one("r.json", json.dumps([PAIRS[:3]]), stops="not a JSON object", title="a list in a list")
    yield counted("r.json", json.dumps([*PAIRS, 3, "x", None]), N, {"not a JSON object": 3})
    yield counted("r.jsonl", lines([*PAIRS, "[1]", "3", "null", '"x"']), N, {"not a JSON object": 4})
    yield one("r.json", "", stops="is empty", title="an empty json")
    yield one("r.jsonl", "", stops="is empty", title="an empty jsonl")
    yield one("r.jsonl", "\n\n \n", stops="is empty", title="empty lines alone")
    yield one("r.json", "[]", stops="is empty", title="an empty list")
    yield one("r.json", "{}", stops="no known format", title="an empty object")
    yield one("r.json", json.dumps(PAIRS)[:-20], stops="is broken JSON", title="a list that is cut")
    yield one("r.json", json.dumps(PAIRS) + "x", stops="text after the list", title="text after the list")
    yield one("r.json", '[{"a": 1},\n oops]', stops="r.json:2 is broken JSON", title="broken in line two")
    yield one("r.json", '"text"', stops="must hold a list of rows", title="a text")
    yield one("r.json", "3", stops="must hold a list of rows", title="a number")
    yield one("r.json", DEEP, stops="nested too deeply", title="a deep list")
    yield one("r.json", '{"prompt": "a", "completion":', stops="is broken JSON", title="an object that is cut")
    yield counted("r.jsonl", lines([*PAIRS, '{"prompt": "x", "compl']), N, {"broken JSON": 1})
    yield counted("r.jsonl", lines([*PAIRS, "{'prompt': 'x', 'completion': 'y'}"]), N, {"broken JSON": 1})
    yield counted("r.jsonl", lines([*PAIRS, '{"a":' + DEEP]), N, {"nested too deeply": 1})
    yield counted(
        "r.jsonl", lines([*PAIRS, '{"prompt": "x", "completion": ' + "9" * 5000 + "}"]), N, {"4300 digits": 1}
    )
    yield counted("r.jsonl", lines([*PAIRS, "<<<<<<< HEAD", "=======", ">>>>>>> x"]), N, {"broken JSON": 3})
    yield one(
        "r.jsonl",
        lines([*PAIRS, '{"prompt": "big", "completion": 123456789012345678901234567890}']),
        N + 1,
        title="a number beyond 64 bits",
    )
    yield counted("r.jsonl", lines([*PAIRS, '{"prompt": "x", "completion": NaN}']), N, {"missing field completion": 1})
    yield one("r.jsonl", lines([*PAIRS, '{"prompt": "x", "completion": "y", "score": NaN}']), N + 1, title="NaN beside")
    nested = {
        "messages": [
            {"role": "user", "content": "x"},
            {
                "role": "assistant",
                "content": "",
                "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": float("inf")}}}],
            },
        ]
    }
    yield counted("r.jsonl", lines([*CHAT, nested]), N, {"NaN or infinity": 1})

    twice = '{"prompt": "x", "prompt": "y", "completion": "z"}'
    yield counted("r.jsonl", lines([*PAIRS, twice]), N, {"the key prompt stands twice": 1})
    yield counted("r.json", f"[{twice},{json.dumps(PAIRS)[1:]}", N, {"the key prompt stands twice": 1})
    yield one("r.json", twice, stops="the key prompt stands twice", title="one object with a key twice")
    called = {"name": "f", "arguments": '{"x": 1, "x": 2}'}
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "function_call": called}]
    yield counted("r.jsonl", lines([*CHAT, {"messages": messages}]), N, {"the key x stands twice": 1})


def text_and_encodings():
    """Encodings, line ends, and letters that break readers."""
    text = JSONL.decode()
    yield one("r.jsonl", b"\xef\xbb\xbf" + JSONL, N, title="UTF-8 with a mark")
    yield one("r.jsonl", text.encode("utf-16"), N, title="UTF-16 with a mark")
    yield one("r.jsonl", text.encode("utf-16-le"), N, title="UTF-16 LE without a mark")
    yield one("r.jsonl", text.encode("utf-16-be"), N, title="UTF-16 BE without a mark")
    yield one("r.jsonl", text.encode("utf-32"), N, title="UTF-32 with a mark")
    yield one("r.csv", table(PAIRS).encode("utf-16"), N, title="csv in UTF-16")
    yield one("r.csv", b"\xef\xbb\xbf" + table(PAIRS).encode(), N, title="csv with a mark")
    yield one("r.json", json.dumps(PAIRS).encode("utf-16"), N, title="json in UTF-16")
    yield one("r.txt", "one\n\ntwo".encode("utf-16"), 2, title="text in UTF-16")
    yield one("r.jsonl", text.replace("\n", "\r\n"), N, title="CR LF")
    yield one("r.jsonl", text.replace("\n", "\r"), N, title="CR alone")
    yield one("r.csv", table(PAIRS, end="\r\n"), N, title="csv with CR LF")
    yield one("r.csv", table(PAIRS, end="\r"), N, title="csv with CR")
    yield one("r.jsonl", text.rstrip("\n"), N, title="no last line end")
    yield one("r.jsonl", text.replace("\n", "\n\n\n"), N, title="empty lines between")
    yield one(
        "r.jsonl",
        b"\xef\xbb\xbf"
        + JSONL[:100].rsplit(b"\n", 1)[0]
        + b"\n\xef\xbb\xbf"
        + JSONL[len(JSONL[:100].rsplit(b"\n", 1)[0]) + 1 :],
        N,
        title="a mark in the middle",
    )
    yield one(
        "r.jsonl",
        lines([*PAIRS, json.dumps({"prompt": "a\u2028b", "completion": "c\u2029d\x85e"}, ensure_ascii=False)]),
        N + 1,
        title="U+2028 in a string",
    )
    yield one("r.csv", table([*PAIRS, {"prompt": "a\u2028b", "completion": "c"}]), N + 1, title="U+2028 in a cell")
    yield one("r.jsonl", lines([*PAIRS, {"prompt": "a\u0000b", "completion": "c"}]), N + 1, title="an escaped NUL")
    yield counted("r.jsonl", JSONL + b"\x00" * 64 + b"\n", N, {"broken JSON": 1})
    yield counted("r.jsonl", JSONL + b'{"prompt": "caf\xe9", "completion": "x"}\n', N, {"not UTF-8": 1})
    yield counted("r.csv", table(PAIRS).encode() + b'"caf\xe9","x"\n', N, {"not UTF-8": 1})
    yield counted("r.txt", b"one\n\ntwo\n\ncaf\xe9\n", 2, {"not UTF-8": 1})
    yield one("r.json", b'[{"prompt": "caf\xe9", "completion": "x"}]', stops="not UTF-8", title="json not in UTF-8")
    yield counted("r.jsonl", lines([*PAIRS, '{"prompt": "x", "completion": "\\ud83d"}']), N, {"lone surrogate": 1})
    yield one(
        "r.jsonl",
        lines([*PAIRS, '{"prompt": "x", "completion": "\\ud83d\\ude00"}']),
        N + 1,
        title="a pair of surrogates",
    )
    yield one("r.jsonl", text.encode("utf-16")[:-1], stops="encoding", title="UTF-16 that is cut")
    yield one(
        "r.jsonl", lines([{"prompt": "long", "completion": "x" * 3_000_000}, *PAIRS]), N + 1, title="a row of 3 MB"
    )
    commas = {"prompt": "long", "completion": "," * 300_000}
    yield one("r.jsonl", lines([commas, "{broken", *PAIRS]), N + 1, title="a long row of commas", broken_JSON=1)


def tables():
    """CSV, TSV, Parquet and Arrow."""
    yield one("r.csv", table(PAIRS, mark=";"), N, title="semicolons")
    yield one("r.csv", table(PAIRS, mark="\t"), N, title="tabs in a csv")
    yield one("r.csv", table(PAIRS, mark="|"), N, title="bars")
    yield one("r.csv", 'prompt,completion\n"a, ""b""","c\nd"\n', 1, title="quotes, commas and line ends in a cell")
    yield one("r.csv", " prompt , completion \na,b\n", 1, title="spaces in the header")
    yield one("r.csv", "\n\nprompt,completion\na,b\n", 1, title="empty lines before the header")
    yield one("r.csv", "prompt,completion,\na,b,\n", 1, title="a column without a name")
    yield counted("r.csv", table(PAIRS) + "a\n", N, {"fewer cells than columns": 1})
    yield counted("r.csv", table(PAIRS) + "a,b,c\n", N, {"more cells than columns": 1})
    yield counted("r.csv", table(PAIRS) + 'a,"never closed\nb,c\nd,e\n', N, {"never closed": 1})
    yield counted("r.csv", table(PAIRS) + '"a"b,c\n', N, {"broken quotes": 1})
    yield counted("r.csv", table(PAIRS) + "a,\n", N, {"empty answer": 1})
    yield counted("r.csv", table(PAIRS) + ",b\n", N, {"empty prompt": 1})
    yield one("r.csv", "prompt,prompt,completion\na,b,c\n", stops="twice", title="a column twice")
    yield one("r.csv", "a,b\nc,d\n", stops="no known format", title="no header")
    yield one("r.csv", "prompt,completion\n", stops="is empty", title="a header alone")
    yield one("r.csv", "", stops="is empty", title="an empty csv")
    yield one("r.tsv", "prompt\tcompletion\na, b\tc, d\n", 1, title="commas in a tsv")
    messages = json.dumps(CHAT[0]["messages"]).replace('"', '""')
    yield one("r.csv", f'messages\n"{messages}"\n', 1, title="messages as JSON in a cell")
    yield one("r.parquet", b"nonsense", stops="no readable Parquet", title="no parquet")
    yield one("r.parquet", b"", stops="no readable Parquet", title="an empty parquet")
    yield one("r.parquet", parquet(PAIRS)[:-10], stops="no readable Parquet", title="a parquet that is cut")
    yield one("r.arrow", b"nonsense", stops="no readable Arrow", title="no arrow")
    yield one("r.arrow", arrow(PAIRS)[:60], stops="no readable Arrow", title="an arrow that is cut")
    yield one("r.parquet", parquet(CHAT), N, title="parquet of messages")
    yield one("r.parquet", parquet(PAIRS, compression="zstd"), N, title="parquet in zstd")
    yield one(
        "r.parquet",
        parquet([{**row, "when": None, "score": float("nan")} for row in PAIRS]),
        N,
        title="parquet with empty columns",
    )
    yield one("r.parquet", parquet(PAIRS, row_group_size=2), N, title="parquet of small groups")
    yield counted(
        "r.parquet", parquet([*PAIRS, {"prompt": "x", "completion": None}]), N, {"missing field completion": 1}
    )

    yield one("r.parquet", twice_named(), stops="the column 'prompt' twice", title="a column of a parquet twice")
    yield counted("r.parquet", far_date(), 1, {"date value out of range": 1})
    yield counted("r.parquet", no_text(), 1, {"not UTF-8": 1})


def rows():
    """Rows that cannot be used, each counted under what is wrong with it."""
    user, answer = {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}
    bad = {
        "role": {"messages": [{"role": ["user"], "content": "x"}, answer]},
        "without a role": {"messages": [{"content": "x"}, answer]},
        "no assistant turn": {"messages": [user]},
        "begins with the answer": {"messages": [answer]},
        "empty answer": {"messages": [user, {"role": "assistant", "content": " "}]},
        "unknown role": {"messages": [{"role": "usr", "content": "x"}, answer]},
        r"unknown role \ud800": {"messages": [{"role": "\ud800", "content": "x"}, answer]},
        "missing field messages": {"messages": []},
        "no JSON": {"messages": "[{"},
    }
    for reason, row in bad.items():
        yield counted("r.jsonl", lines([*CHAT, row]), N, {reason: 1})
    yield counted("r.jsonl", lines([*PAIRS, {"prompt": "x"}]), N, {"missing field completion": 1})
    yield counted("r.jsonl", lines([*PAIRS, PAIRS[0], PAIRS[0]]), N, {"exact duplicate": 2})
    yield counted("r.jsonl", lines([*PAIRS, {"x": 1}, {}]), N, {"no known format": 2})
    yield one("r.jsonl", lines([*PAIRS, *CHAT]), 2 * N, title="two formats in one file")
    yield one("r.jsonl", lines([{"x": 1, "y": 2}] * 3), stops="no known format", title="unknown columns")
    yield one(
        "r.jsonl", lines([{"promt": "a", "completion": "b"}]), stops="did you mean `prompt`", title="a misspelt column"
    )
    yield one(
        "r.jsonl",
        lines([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3),
        stops="preference",
        title="preference pairs",
    )
    judged = {"input": {"messages": [user]}, "preferred_output": [answer], "non_preferred_output": [answer]}
    yield one("r.jsonl", lines([judged] * 3), stops="preference", title="OpenAI's preference pairs")
    yield one("r.jsonl", lines([{**CHAT[0], "label": False}] * 3), stops="judged", title="judged conversations")
    yield one("r.jsonl", lines(["{broken"] * 4), stops="none of the 4 rows", title="nothing but broken lines")
    yield one(
        "r.jsonl",
        lines(["{broken", *PAIRS]).replace("{broken", '{"x"', 1),
        N,
        title="a broken first line",
        broken_JSON=1,
    )
