"""What reads JSON lines: Python's own reader, Arrow, `datasets` streaming, DuckDB and Polars on 200,000 rows of 1 kB.

    python -m venv ENV && ENV/bin/pip install duckdb==2.0.1 polars==2.1.0 datasets==5.2.0
    ENV/bin/python -m benchmarks.engines [--rows 200000] [--repeats 3] [--out benchmarks/results/engines.json]

Each reads the file, counts the rows and adds up the SHA-256 digests of prompt and answer; all must come to the same sum. Each runs in
a process of its own; memory is the peak resident size less that after the imports. Then each is given a file with one broken line, and
one in which a row has a list where the others have a string: rows that are read and whether they are read as Python reads them, or the
error. All engines run with their own defaults.
"""

import argparse
import hashlib
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.intake import write_rows

FAULTY_ROWS, FAULTY_AT = 20_000, 15_000
FAULTS = {"broken": '{"prompt": "a", "compl', "other type": '{"prompt": ["a", "b"], "completion": "c"}'}


def python(file: str) -> tuple[int, int]:
    """Line by line; a line that is broken is passed over."""
    return _added(_lines(file))


def _lines(file: str) -> Iterator[tuple[Any, Any]]:
    with Path(file).open(encoding="utf-8") as stream:
        for line in stream:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            yield row["prompt"], row["completion"]


def arrow(file: str) -> tuple[int, int]:
    """`pyarrow.json`, block by block."""
    import pyarrow.json

    batches = pyarrow.json.open_json(file)
    return _added(pair for batch in batches for pair in _pairs(batch.to_pydict()))


def datasets(file: str) -> tuple[int, int]:
    """`datasets` with streaming."""
    import datasets

    rows = datasets.load_dataset("json", data_files=file, split="train", streaming=True)
    return _added((row["prompt"], row["completion"]) for row in rows)


def duckdb(file: str) -> tuple[int, int]:
    """All in SQL: rows never become Python objects."""
    import duckdb

    rows, total = duckdb.sql(
        "SELECT count(*), sum(('0x' || substr(sha256(prompt || chr(0) || completion), 1, 8))::HUGEINT) "
        f"FROM read_json('{file}', format='newline_delimited')"
    ).fetchall()[0]
    return rows, int(total)


def polars(file: str) -> tuple[int, int]:
    """Lazily, by its streaming engine; digests in Python, since it has no SHA-256."""
    import polars

    counted = [0, 0]

    def add(batch: Any) -> None:
        rows, total = _added(_pairs(batch.to_dict(as_series=False)))
        counted[0] += rows
        counted[1] += total

    polars.scan_ndjson(file).sink_batches(add, chunk_size=10_000)
    return counted[0], counted[1]


ENGINES: dict[str, Callable[[str], tuple[int, int]]] = {
    "python": python,
    "arrow": arrow,
    "datasets": datasets,
    "duckdb": duckdb,
    "polars": polars,
}
PACKAGES = {"arrow": "pyarrow", "datasets": "datasets", "duckdb": "duckdb", "polars": "polars"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", default="benchmarks/results/engines.json")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        print(json.dumps(_measured(*parsed.one)))
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "rows.jsonl"
        write_rows(whole, parsed.rows)
        made = {name: _of(name, whole, parsed.repeats) for name in ENGINES}
        assert len({item["sum"] for item in made.values()}) == 1, made
        for fault, line in FAULTS.items():
            file = Path(folder) / "faulty.jsonl"
            write_rows(file, FAULTY_ROWS)
            lines = file.read_text().splitlines(keepends=True)
            file.write_text("".join([*lines[:FAULTY_AT], f"{line}\n", *lines[FAULTY_AT:]]))
            for name in ENGINES:
                made[name][fault] = _outcome(name, file)
                print(name, fault, made[name][fault], flush=True)
    machine = f"{platform.machine()}, Python {platform.python_version()}"
    versions = {name: version(package) for name, package in PACKAGES.items()}
    result = {"machine": machine, "versions": versions, "rows": parsed.rows, "repeats": parsed.repeats, "engines": made}
    Path(parsed.out).write_text(json.dumps(result, indent=2) + "\n")


def _of(name: str, file: Path, repeats: int) -> dict[str, Any]:
    """The medians over the repeats."""
    runs = [json.loads(_run(name, file).stdout) for _ in range(repeats)]
    made = {key: statistics.median(run[key] for run in runs) for key in ("cpu_seconds", "seconds", "memory_mib")}
    print(name, made, flush=True)
    return {**made, "sum": runs[0]["sum"]}


def _outcome(name: str, file: Path) -> str:
    done = _run(name, file)
    if not done.returncode:
        found = json.loads(done.stdout)
        same = found["sum"] == python(str(file))[1]
        return f"{found['rows']} rows of {FAULTY_ROWS + 1}, {'as they are' if same else 'one of them changed'}"
    return done.stderr.strip().splitlines()[-1].replace(str(file), file.name)[:200]


def _run(name: str, file: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks.engines", "--one", name, str(file)]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def _measured(name: str, file: str) -> dict[str, Any]:
    if name in PACKAGES:
        __import__("pyarrow.json" if name == "arrow" else name)
    bare, begun, wall = _peak(), time.process_time(), time.monotonic()
    rows, total = ENGINES[name](file)
    spent = {"cpu_seconds": round(time.process_time() - begun, 2), "seconds": round(time.monotonic() - wall, 2)}
    return {**spent, "memory_mib": round(_peak() - bare, 1), "rows": rows, "sum": total}


def _pairs(columns: dict[str, list[Any]]) -> Iterator[tuple[Any, Any]]:
    return zip(columns["prompt"], columns["completion"], strict=True)


def _added(pairs: Iterator[tuple[Any, Any]]) -> tuple[int, int]:
    """Rows, and the sum of the first 32 bits of their digests."""
    rows = total = 0
    for prompt, completion in pairs:
        rows += 1
        total += int(hashlib.sha256(f"{prompt}\0{completion}".encode()).hexdigest()[:8], 16)
    return rows, total


def _peak() -> float:
    """Peak resident size of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
