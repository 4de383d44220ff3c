"""Odd and bad files as people have them: kinds, archives, folders, links, and what is no data file at all."""

import gzip
import json
from pathlib import Path

from odd_content import json_shapes, rows, tables, text_and_encodings
from odd_made import CHAT, JSONL, PACK, PAIRS, N, Odd, arrow, lines, one, parquet, table, tarred, zipped, zstd


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
    yield one("twice.zip", zipped([("a.jsonl", JSONL), ("a.jsonl", lines(CHAT))]), stops="a.jsonl twice")
    yield one("twice.tar", tarred([("a.jsonl", JSONL), ("a.jsonl", lines(CHAT).encode())]), stops="a.jsonl twice")
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
    yield of("a name that is no UTF-8", {"na\udcffme.jsonl": train + b"{", "\udcff.png": b""}, N, broken_JSON=1)
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
