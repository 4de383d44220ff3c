"""Odd and bad files as people have them: name, bytes, and what intake must make of them.

`kept` rows are canonical, `left` are counted by reason (a part of the reason is enough), or `stops` is a part of the one sentence.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

N = 6
PAIRS = [{"prompt": f"question {n}", "completion": f"answer {n}"} for n in range(N)]
CHAT = [
    {"messages": [{"role": "user", "content": f"q {n}"}, {"role": "assistant", "content": f"a {n}"}]} for n in range(N)
]


@dataclass(frozen=True)
class Odd:
    """A source: files by relative path, or one file; what is kept, counted, left out or refused."""

    name: str
    files: dict[str, bytes]
    kept: int = 0
    left: dict[str, int] = field(default_factory=dict)
    stops: str = ""
    unread: tuple[str, ...] = ()
    source: str = ""
    links: dict[str, str] = field(default_factory=dict)


def lines(values, end="\n"):
    return "".join((v if isinstance(v, str) else json.dumps(v)) + end for v in values)


def one(name, content, kept=0, stops="", title="", **left):
    data = content if isinstance(content, bytes) else content.encode()
    return Odd(title or name, {name: data}, kept, {k.replace("_", " "): v for k, v in left.items()}, stops, source=name)


def counted(name, content, kept, left):
    data = content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass")
    return Odd(f"{name}: {next(iter(left))}", {name: data}, kept, left, source=name)


def table(values, columns=("prompt", "completion"), mark=",", end="\n"):
    return end.join([mark.join(columns), *(mark.join(f'"{v[c]}"' for c in columns) for v in values)]) + end


def parquet(values, **options):
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(values), sink, **options)
    return sink.getvalue()


def arrow(values, stream=False):
    import pyarrow

    made = pyarrow.Table.from_pylist(values)
    sink = io.BytesIO()
    writer = (pyarrow.ipc.new_stream if stream else pyarrow.ipc.new_file)(sink, made.schema)
    writer.write_table(made)
    writer.close()
    return sink.getvalue()


def zstd(data):
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(data)
    return sink.getvalue().to_pybytes()


def zipped(members):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(members, mode="w", link=None):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return sink.getvalue()


def pickled(values):
    import pickle

    return pickle.dumps(values)


JSONL = lines(PAIRS).encode()
DEEP = "[" * 100_000
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}


def formats():
    """Every kind of file as it should be, plain and compressed."""
    plain = {
        "r.jsonl": JSONL,
        "r.ndjson": JSONL,
        "r.json": json.dumps(PAIRS).encode(),
        "r.csv": table(PAIRS).encode(),
        "r.tsv": table(PAIRS, mark="\t").encode(),
        "r.parquet": parquet(PAIRS),
        "r.arrow": arrow(PAIRS),
        "r.feather": arrow(PAIRS),
        "r.txt": "\n\n".join(f"paragraph {n}\nof two lines" for n in range(N)).encode(),
        "r.md": "".join(f"# heading {n}\n\ntext {n}\n\n" for n in range(N)).encode(),
    }
    for name, data in plain.items():
        yield one(name, data, N)
        for packing, pack in PACK.items():
            if name not in ("r.ndjson", "r.feather"):
                yield one(f"{name}.{packing}", pack(data), N)
    yield one("s.arrow", arrow(PAIRS, stream=True), N)
    yield one("R.JSONL", JSONL, N)
    yield one("r.jsonl", gzip.compress(JSONL), N, title="gzip without its suffix")
    yield one("r.jsonl.gz", JSONL, N, title="plain text with the suffix gz")
    yield one("two.jsonl.gz", gzip.compress(JSONL[: len(JSONL) // 2]) + gzip.compress(JSONL[len(JSONL) // 2 :]), N)
    yield one("two.jsonl.zst", zstd(JSONL[:100]) + zstd(JSONL[100:]), N)


def archives():
    """Zip and tar, and what must not be read out of them."""
    pair = {"a.jsonl": lines(PAIRS[:3]).encode(), "deep/b.csv": table(PAIRS[3:]).encode()}
    yield one("r.zip", zipped(pair), N)
    yield one("r.tar", tarred(pair), N)
    for suffix, mode in (("tar.gz", "w:gz"), ("tgz", "w:gz"), ("tar.bz2", "w:bz2"), ("tar.xz", "w:xz")):
        yield one(f"r.{suffix}", tarred(pair, mode), N)
    yield one("r.tar.zst", zstd(tarred(pair)), N)
    yield one("p.zip", zipped({"x.parquet": parquet(PAIRS), "y.jsonl.gz": gzip.compress(lines(CHAT).encode())}), 2 * N)
    yield one("mac.zip", zipped({"a.jsonl": JSONL, "__MACOSX/._a.jsonl": b"\x00\x05", ".hidden.jsonl": JSONL}), N)
    yield one("up.zip", zipped({"../evil.jsonl": JSONL}), stops="leaves the archive")
    yield one("root.tar", tarred({"/etc/evil.jsonl": JSONL}), stops="leaves the archive")
    yield one("link.tar", tarred(pair, link="passwd.txt"), N)
    yield one("empty.zip", zipped({}), stops="no data file")
    yield one("other.zip", zipped({"a.png": b"x"}), stops="no data file")
    yield one("cut.zip", zipped(pair)[:-40], stops="damaged")
    yield one("cut.tar.gz", tarred(pair, "w:gz")[:-30], stops="damaged")
    yield one("bad.tar", b"nonsense" * 200, stops="damaged")
    encrypted = bytearray(zipped(pair))
    for place in range(len(encrypted) - 4):
        if encrypted[place : place + 4] == b"PK\x03\x04":
            encrypted[place + 6] |= 1
        elif encrypted[place : place + 4] == b"PK\x01\x02":
            encrypted[place + 8] |= 1
    yield one("locked.zip", bytes(encrypted), stops="encrypted")
    for packing, pack in PACK.items():
        packed = pack(JSONL * 50)
        yield one(f"cut.jsonl.{packing}", packed[: len(packed) // 2], stops="damaged")
        broken = bytearray(packed)
        broken[len(broken) // 2] ^= 0x55
        broken[len(broken) // 2 + 1] ^= 0x55
        if packing != "zst":
            yield one(f"bits.jsonl.{packing}", bytes(broken), stops="damaged")


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
    yield one("r.jsonl", lines(["{broken"] * 4), stops="none of the 4 rows", title="nothing but broken lines")
    yield one(
        "r.jsonl",
        lines(["{broken", *PAIRS]).replace("{broken", '{"x"', 1),
        N,
        title="a broken first line",
        broken_JSON=1,
    )


def folders():
    """Folders as people have them."""
    train, test = (
        lines(PAIRS).encode(),
        lines({"prompt": f"test {n}", "completion": f"t {n}"} for n in range(4)).encode(),
    )
    folder = "data"

    def of(title, files, kept, unread=(), stops="", links=None, source=folder, **left):
        placed = {f"data/{name}": data for name, data in files.items()}
        return Odd(
            title, placed, kept, {k.replace("_", " "): v for k, v in left.items()}, stops, unread, source, links or {}
        )

    yield of("train and test", {"train.jsonl": train, "test.jsonl": test}, N + 4)
    yield of(
        "train, validation and test",
        {"train.jsonl": train, "validation.jsonl": test, "test.jsonl": lines(CHAT).encode()},
        N + 4,
        ("test.jsonl",),
    )
    yield of("splits as folders", {"train/a.jsonl": train, "dev/a.jsonl": test}, N + 4)
    yield of(
        "shards",
        {
            "train-00000-of-00002.jsonl": lines(PAIRS[:3]).encode(),
            "train-00001-of-00002.jsonl": lines(PAIRS[3:]).encode(),
        },
        N,
    )
    yield of("test alone", {"test.jsonl": test}, 0, stops="named as held out")
    yield of(
        "a licence",
        {"train.jsonl": train, "LICENSE.txt": b"text\n\nmore", "README.md": b"# read"},
        N,
        ("LICENSE.txt", "README.md"),
    )
    yield of("text beside rows", {"train.jsonl": train, "notes.txt": b"a\n\nb"}, N, ("notes.txt",))
    yield of("text alone", {"a.txt": b"one\n\ntwo", "LICENSE": b"x", "README.txt": b"x"}, 2, ("LICENSE", "README.txt"))
    yield of("checkpoints of notebooks", {"rows.jsonl": train, ".ipynb_checkpoints/rows-checkpoint.jsonl": test}, N)
    yield of("hidden files", {"rows.jsonl": train, "._rows.jsonl": b"\x00\x05\x16", ".DS_Store": b"x"}, N)
    yield of(
        "a compressed part",
        {"p1.jsonl": lines(PAIRS[:3]).encode(), "p2.jsonl.gz": gzip.compress(lines(PAIRS[3:]).encode())},
        N,
    )
    yield of(
        "an archive inside", {"a.jsonl": lines(PAIRS[:3]).encode(), "b.zip": zipped({"c.jsonl": lines(PAIRS[3:])})}, N
    )
    yield of(
        "a saved dataset",
        {"data-00000-of-00001.arrow": arrow(PAIRS, stream=True), "dataset_info.json": b"{}", "state.json": b"{}"},
        N,
        ("dataset_info.json", "state.json"),
    )
    yield of(
        "other files",
        {"rows.jsonl": train, "plot.png": b"x", "run.py": b"x", "rows.jsonl.lock": b""},
        N,
        ("plot.png", "run.py", "rows.jsonl.lock"),
    )
    yield of("two formats", {"a.jsonl": train, "b.jsonl": lines(CHAT).encode()}, 2 * N)
    yield of(
        "a file of no format",
        {"a.jsonl": train, "stats.jsonl": lines([{"loss": 1}] * 2).encode()},
        N,
        no_known_format=2,
    )
    yield of("one empty file", {"a.jsonl": train, "b.jsonl": b""}, N)
    yield of("equal names", {"x/r.jsonl": lines(PAIRS[:3]).encode(), "y/r.jsonl": lines(PAIRS[3:]).encode()}, N)
    yield of("copies in two files", {"a.jsonl": train, "b.csv": table(PAIRS).encode()}, N, exact_duplicate=N)
    yield of("a broken file", {"a.jsonl": train, "b.json": b"[{"}, 0, stops="b.json:1 is broken JSON")
    yield of("nothing", {"a.png": b"x"}, 0, stops="no data file")
    yield of("hidden alone", {".a.jsonl": train}, 0, stops="no data file")
    yield of("a link out", {"a.jsonl": train}, 0, stops="leaves the folder", links={"data/b.jsonl": "outside.jsonl"})
    yield of("a linked folder out", {"a.jsonl": train}, 0, stops="leaves the folder", links={"data/more": "."})
    yield of("a link inside", {"a.jsonl": train}, N, ("more",), links={"data/more": "data"}, exact_duplicate=0)
    yield of("a link to nothing", {"a.jsonl": train}, N, ("gone.jsonl",), links={"data/gone.jsonl": "data/none.jsonl"})
    yield of(
        "a pattern",
        {"a-1.jsonl": lines(PAIRS[:3]).encode(), "a-2.jsonl": lines(PAIRS[3:]).encode(), "b.jsonl": test},
        N,
        source="data/a-*.jsonl",
    )
    yield of("a pattern of nothing", {"a.jsonl": train}, 0, stops="matches no file", source="data/*.csv")
    yield of("a space, a colon and an accent", {"ev: il é.jsonl": train}, N, source="data/ev: il é.jsonl")


def others():
    """What is no data file at all."""
    for name, hint in (
        ("r.xlsx", "CSV"),
        ("r.pkl", "pickles"),
        ("r.yaml", "supported"),
        ("r.pdf", "supported"),
        ("r.7z", "unpack"),
        ("r", "supported"),
        ("r.exe", "supported"),
    ):
        yield one(name, b"x", stops=hint)
    yield Odd("not there", {}, stops="does not exist", source="none.jsonl")
    yield Odd("an empty folder's place", {"d/x": b""}, stops="no data file", source="d")


def link(folder: Path, links: dict[str, str]) -> None:
    """Make the symbolic links of a case."""
    (folder / "outside.jsonl").write_bytes(JSONL)
    for name, target in links.items():
        (folder / name).symlink_to((folder / target).resolve() if target != "." else folder.resolve())


CASES = [
    case
    for group in (formats, archives, json_shapes, text_and_encodings, tables, rows, folders, others)
    for case in group()
]
