"""Intake: whatever the user brings becomes one canonical Parquet of messages; every row is kept or counted."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_select.data import files, formats, samples
from lora_select.data.files import RawRow
from lora_select.data.render import Row
from lora_select.errors import InputError
from lora_select.records import Dataset, RejectedRows, SourceFile, file_ref, sha256_file
from lora_select.records.digests import canonical

EXAMPLES = 5
NOTHING_SAID = formats.RowOptions()
SPLIT_BITS = 2**32


@dataclass(frozen=True)
class CanonicalRow:
    """A usable row: its digest, the digest of its prompt (which decides its split), its content and its place."""

    row_id: str
    prompt_id: str
    content: Row
    file: str
    line: int


@dataclass
class Ledger:
    """What happened to every row that was read, by file and by reason."""

    seen: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, int, str]] = field(default_factory=list)
    unused: Counter[str] = field(default_factory=Counter)
    notes: Counter[str] = field(default_factory=Counter)

    def reject(self, file: str, line: int, reason: str) -> None:
        """Count a row that is left out."""
        self.rejected.append((file, line, reason))

    def summary(self) -> tuple[RejectedRows, ...]:
        """Rejected rows by reason, the most frequent first."""
        places: dict[str, list[str]] = {}
        for file, line, reason in self.rejected:
            places.setdefault(reason, []).append(f"{file}:{line}")
        ordered = sorted(places.items(), key=lambda item: (-len(item[1]), item[0]))
        return tuple(RejectedRows(reason, len(found), tuple(found[:EXAMPLES])) for reason, found in ordered)


def intake(
    *,
    source: str,
    name: str,
    folder: Path,
    format: str = "auto",  # noqa: A002  (the config's own word)
    revision: str | None = None,
    split: str | None = None,
    eval_source: str | None = None,
    eval_fraction: float = 0.1,
    max_train_rows: int | None = None,
    max_eval_rows: int | None = None,
    seed: int = 0,
    options: formats.RowOptions = NOTHING_SAID,
) -> Dataset:
    """Read a source, convert every row, split, and write `train.parquet`, `eval.parquet` and `rejected.jsonl`.

    Rows are ordered by digest, so the same content gives the same bytes whatever its files were called and in which order
    they came. Rows of one prompt never fall into both splits.

    Args:
        source: a file, a folder, `sample:<name>`, or a hub id.
        name: what the dataset is called.
        folder: where the files go.
        format: `auto` or one of `formats.FORMATS`.
        revision: of a hub dataset.
        split: of a hub dataset.
        eval_source: rows to evaluate on; None splits `source` by a hash of the prompts.
        eval_fraction: share of prompts that are held out when there is no `eval_source`.
        max_train_rows: keep the rows with the smallest hashes; the others are counted.
        max_eval_rows: the same for the evaluation rows.
        seed: changes the split and the subsets.
        options: what the user says of the rows: column names, what is ignored, which answers are learnt.

    Raises:
        InputError: nothing to read, wrong columns, no usable row, or an evaluation row among the training rows.
    """
    ledger = Ledger()
    rows, used_format, digests = _read(source, format, revision, split, folder, ledger, options)
    if eval_source is None:
        train, held_out = _split_by_prompt(rows, eval_fraction, seed)
        origin = "split by hash of the prompt"
    else:
        train = rows
        held_out, _, more = _read(eval_source, format, revision, split, folder, ledger, options)
        digests |= more
        _refuse_leak(train, held_out)
        origin = eval_source
    train = _limit(train, max_train_rows, seed, "over max_train_rows", ledger)
    held_out = _limit(held_out, max_eval_rows, seed, "over max_eval_rows", ledger)
    if not train or len(held_out) < 2:
        raise InputError(
            f"{source} leaves {len(train)} training and {len(held_out)} evaluation rows; at least 1 and 2 are needed: "
            "bring more rows, raise `dataset.eval_fraction`, or name `dataset.eval_source`"
        )
    for row in (*train, *held_out):
        ledger.accepted[row.file] += 1
    _write_rejected(folder / "rejected.jsonl", ledger)
    _write_places(folder / "places.parquet", [*train, *held_out])
    return Dataset(
        name=name,
        source=source,
        format=used_format,
        digest=_digest(train, held_out),
        train_rows=len(train),
        eval_rows=len(held_out),
        train_file=_write(folder / "train.parquet", train),
        eval_file=_write(folder / "eval.parquet", held_out),
        rejected_file=file_ref(folder / "rejected.jsonl", folder),
        sources=tuple(
            SourceFile(file, digests[file], ledger.seen[file], ledger.accepted[file]) for file in sorted(ledger.seen)
        ),
        rejected=ledger.summary(),
        eval_source=origin,
        notes=formats.sentences(used_format, ledger.unused, ledger.notes),
    )


def read_canonical(path: Path) -> Iterator[tuple[str, Row]]:
    """`(row_id, row)` of a canonical Parquet file, in file order."""
    import pyarrow.parquet

    for values in pyarrow.parquet.read_table(path).to_pylist():
        tools = json.loads(values["tools"]) if values["tools"] else None
        yield values["row_id"], {"messages": json.loads(values["messages"]), "tools": tools}


def _read(
    source: str,
    wanted_format: str,
    revision: str | None,
    split: str | None,
    folder: Path,
    ledger: Ledger,
    options: formats.RowOptions,
) -> tuple[list[CanonicalRow], str, dict[str, str]]:
    """Usable rows without exact duplicates, ordered by digest; the format; file name -> SHA-256."""
    raw, digests = _open(source, revision, split, folder)
    kept: dict[str, CanonicalRow] = {}
    name: str | None = None if wanted_format == "auto" else wanted_format
    checked = False
    before = len(ledger.rejected)
    for row in raw:
        ledger.seen[row.file] += 1
        if row.fault is not None:
            ledger.reject(row.file, row.line, row.fault)
            continue
        row = RawRow(row.file, row.line, formats.mapped(row.values, options))
        if not checked:
            name, checked = _format(name, row), True
        made = _canonical(row, name or "", ledger, options)
        if made is not None and made.row_id in kept:
            ledger.reject(row.file, row.line, "exact duplicate")
        elif made is not None:
            kept[made.row_id] = made
    if not kept:
        raise InputError(_nothing_usable(source, ledger.rejected[before:]))
    return sorted(kept.values(), key=lambda row: row.row_id), name or "", digests


def _format(name: str | None, row: RawRow) -> str:
    if name is None:
        return formats.detect(row.values)
    formats.check(name, row.values)
    return name


def _open(
    source: str, revision: str | None, split: str | None, folder: Path
) -> tuple[Iterable[RawRow], dict[str, str]]:
    if source.startswith("sample:"):
        path = samples.write(source.removeprefix("sample:"), folder)
    elif Path(source).exists() or _looks_local(source):
        path = Path(source)
    else:
        return files.read_hub(source, revision, split), {source: f"hub:{revision or 'latest'}"}
    listed = files.list_files(path)
    names = _unique_names(listed, path)
    rows = (RawRow(names[file], row.line, row.values, row.fault) for file in listed for row in files.read_file(file))
    return rows, {names[file]: sha256_file(file) for file in listed}


def check_source(source: str) -> None:
    """Refuse a local source that is not there; a hub id and a sample are looked up only when they are read.

    Raises:
        InputError: there is no such file or folder, or it holds no data file.
    """
    if not source.startswith("sample:") and (Path(source).exists() or _looks_local(source)):
        files.list_files(Path(source))


def _looks_local(source: str) -> bool:
    return source.startswith((".", "/", "~")) or Path(source).suffix.lower() in files.SUFFIXES


def _unique_names(listed: Sequence[Path], root: Path) -> dict[Path, str]:
    """File names; paths below the source where two files share a name."""
    counts = Counter(file.name for file in listed)
    return {file: file.name if counts[file.name] == 1 else file.relative_to(root).as_posix() for file in listed}


def _canonical(row: RawRow, name: str, ledger: Ledger, options: formats.RowOptions) -> CanonicalRow | None:
    try:
        made = formats.convert_row(name, row.values, options)
    except formats.RowError as error:
        ledger.reject(row.file, row.line, str(error))
        return None
    ledger.unused.update(made.unused)
    ledger.notes.update(made.notes)
    content = made.content
    messages = content["messages"]
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    prompt = {"messages": messages[:last] or messages, "tools": content["tools"]}
    return CanonicalRow(_sha256(content), _sha256(prompt), content, row.file, row.line)


def _nothing_usable(source: str, rejected: list[tuple[str, int, str]]) -> str:
    if not rejected:
        return f"{source} is empty: it holds no row; name a dataset with rows"
    file, line, reason = rejected[0]
    return (
        f"none of the {len(rejected)} rows of {source} can be used; the first is at {file}:{line} ({reason}); "
        "mend the rows or set `dataset.format`"
    )


def _split_by_prompt(
    rows: list[CanonicalRow], fraction: float, seed: int
) -> tuple[list[CanonicalRow], list[CanonicalRow]]:
    threshold = int(fraction * SPLIT_BITS)
    held_out = [row for row in rows if _hash(row.prompt_id, seed, "split") < threshold]
    train = [row for row in rows if _hash(row.prompt_id, seed, "split") >= threshold]
    return train, held_out


def _limit(rows: list[CanonicalRow], limit: int | None, seed: int, reason: str, ledger: Ledger) -> list[CanonicalRow]:
    if limit is None or len(rows) <= limit:
        return rows
    ranked = sorted(rows, key=lambda row: _hash(row.row_id, seed, "subset"))
    for row in ranked[limit:]:
        ledger.reject(row.file, row.line, reason)
    return sorted(ranked[:limit], key=lambda row: row.row_id)


def _refuse_leak(train: list[CanonicalRow], held_out: list[CanonicalRow]) -> None:
    known = {row.row_id: row for row in train}
    leaked = [row for row in held_out if row.row_id in known]
    if leaked:
        first, twin = leaked[0], known[leaked[0].row_id]
        raise InputError(
            f"{len(leaked)} of {len(held_out)} evaluation rows are also training rows, the first at {first.file}:{first.line} "
            f"(training: {twin.file}:{twin.line}); the result would be worthless, remove them from `dataset.source`"
        )


def _hash(identity: str, seed: int, purpose: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{purpose}:{seed}:{identity}".encode()).digest()[:4], "big")


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def _digest(train: Iterable[CanonicalRow], held_out: Iterable[CanonicalRow]) -> str:
    lines = sorted(f"train {row.row_id}" for row in train) + sorted(f"eval {row.row_id}" for row in held_out)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _in_order(value: Any) -> str:
    """JSON with the row's own order of keys: the arguments of a call are learnt in it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _write(path: Path, rows: list[CanonicalRow]):
    import pyarrow
    import pyarrow.parquet

    fields = [pyarrow.field(name, pyarrow.string()) for name in ("row_id", "messages", "tools")]
    columns = [
        [row.row_id for row in rows],
        [_in_order(row.content["messages"]) for row in rows],
        [_in_order(row.content["tools"]) if row.content["tools"] else None for row in rows],
    ]
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=pyarrow.schema(fields)), path)
    return file_ref(path, path.parent)


def _write_places(path: Path, rows: list[CanonicalRow]) -> None:
    """Where each row came from, for messages to people; no part of the dataset's identity."""
    import pyarrow
    import pyarrow.parquet

    places = {"row_id": [r.row_id for r in rows], "file": [r.file for r in rows], "line": [r.line for r in rows]}
    pyarrow.parquet.write_table(pyarrow.table(places), path)


def _write_rejected(path: Path, ledger: Ledger) -> None:
    with path.open("w", encoding="utf-8") as stream:
        for file, line, reason in sorted(ledger.rejected):
            stream.write(json.dumps({"file": file, "line": line, "reason": reason}, ensure_ascii=False) + "\n")
