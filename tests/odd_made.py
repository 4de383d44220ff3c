"""What odd files are made with: a case, and files of every kind from rows.

`kept` rows are canonical, `left` are counted by reason (a part of the reason is enough), or `stops` is a part of the one sentence.
"""

import bz2
import gzip
import io
import json
import lzma
import tarfile
import warnings
import zipfile
from dataclasses import dataclass, field

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


def _parquet_of(columns, names=("prompt", "completion", "when")):
    import pyarrow
    import pyarrow.parquet

    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns, names=list(names)[: len(columns)]), sink)
    return sink.getvalue()


def twice_named():
    return _parquet_of([["a"], ["b"], ["c"]], ("prompt", "prompt", "completion"))


def far_date():
    import pyarrow

    return _parquet_of([["a", "b"], ["c", "d"], pyarrow.array([1, 2**60], pyarrow.timestamp("us"))])


def no_text():
    import pyarrow

    offsets, data = b"\0\0\0\0\1\0\0\0\2\0\0\0", b"a\xff"
    broken = pyarrow.Array.from_buffers(
        pyarrow.string(), 2, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(data)]
    )
    return _parquet_of([["a", "b"], broken])


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


def _pairs(members):
    return members.items() if isinstance(members, dict) else members


def zipped(members):
    sink = io.BytesIO()
    with (
        warnings.catch_warnings(action="ignore"),
        zipfile.ZipFile(sink, "w") as archive,
    ):  # of a name that is there twice
        for name, data in _pairs(members):
            archive.writestr(name, data)
    return sink.getvalue()


def tarred(members, mode="w", link=None):
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode=mode) as archive:
        for name, data in _pairs(members):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        if link:
            info = tarfile.TarInfo(link)
            info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
            archive.addfile(info)
    return sink.getvalue()


JSONL = lines(PAIRS).encode()
DEEP = "[" * 100_000
PACK = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress, "zst": zstd}
