"""What intake costs: 10 k, 100 k and 1 M rows of 1 kB (or any number), seconds and peak memory, and the exponent of the time.

    python -m benchmarks.intake [--rows 10000 100000 1000000] [--gate-up-to 10000] [--out benchmarks/results/intake.json]

Each size runs in a process of its own; `memory` is its peak resident size less that of an interpreter that has imported the
library and pyarrow, numpy and rensa. The rows are of varied words (no near-duplicates but one row in a thousand). The checks are
timed on the smaller sizes alone, since they take several times as long. `exponent` is that from the first size to the last.
"""

import argparse
import json
import math
import platform
import random
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

WORDS = 20_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--out", default="benchmarks/results/intake.json")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument(
        "--gate-up-to",
        type=int,
        default=10_000,
        metavar="N",
        help="also the checks, where there are at most so many rows",
    )
    parser.add_argument("--gate", action="store_true", help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    if parsed.one:
        _measure(Path(parsed.one), gate=parsed.gate)
        return
    found = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in parsed.rows:
            file = Path(folder) / f"rows-{rows}.jsonl"
            write_rows(file, rows)
            command = [
                sys.executable,
                "-m",
                "benchmarks.intake",
                "--one",
                str(file),
                *(["--gate"] if rows <= parsed.gate_up_to else []),
            ]
            made = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            found.append({"rows": rows, "bytes": file.stat().st_size, **made})
            file.unlink()
            print(found[-1], flush=True)
            Path(parsed.out).write_text(json.dumps(_result(found), indent=2) + "\n")


def _result(found: list[dict]) -> dict:
    import numpy
    import pyarrow

    exponents = [
        math.log(after["cpu_seconds"] / before["cpu_seconds"]) / math.log(after["rows"] / before["rows"])
        for before, after in [*pairwise(found), (found[0], found[-1])]
        if after is not before
    ]
    return {
        "machine": f"{platform.machine()}, Python {platform.python_version()}, pyarrow {pyarrow.__version__}, numpy {numpy.__version__}",
        "sizes": found,
        "exponents": [round(value, 3) for value in exponents[: len(found) - 1]],
        "exponent": round(exponents[-1], 3) if len(found) > 1 else None,
    }


def write_rows(file: Path, rows: int) -> None:
    random.seed(0)
    words = ["".join(random.choices("abcdefghijklmnopqrstuvwxyz", k=random.randint(2, 9))) for _ in range(WORDS)]
    text = ""
    with file.open("w") as stream:
        for number in range(rows):
            if number % 1000 != 999:
                text = " ".join(random.choices(words, k=150))
            stream.write(json.dumps({"prompt": f"{text[:400]} {number}", "completion": text[400:950]}) + "\n")


def _measure(file: Path, *, gate: bool) -> None:
    import numpy  # noqa: F401
    import pyarrow.compute
    import pyarrow.parquet  # noqa: F401
    import rensa  # noqa: F401

    from lora_select.data.intake import intake

    bare = _peak()
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        begun, wall = time.process_time(), time.monotonic()
        dataset = intake(source=str(file), name="b", folder=Path(folder))
        spent = {"cpu_seconds": round(time.process_time() - begun, 2), "seconds": round(time.monotonic() - wall, 2)}
        memory = {"memory_mib": round(_peak() - bare, 1), "interpreter_mib": round(bare, 1)}
        more = {}
        if gate:
            from lora_select.data.gate import check

            begun = time.process_time()
            check.check_dataset(dataset, Path(folder))
            more = {
                "gate_cpu_seconds": round(time.process_time() - begun, 2),
                "gate_memory_mib": round(_peak() - bare, 1),
            }
    kept = dataset.train_rows + dataset.eval_rows
    print(
        json.dumps(
            {
                **spent,
                **memory,
                **more,
                "rows_per_second": round(kept / spent["cpu_seconds"]),
                "kept": kept,
                "split": dataset.eval_source,
            }
        )
    )


def _peak() -> float:
    """Peak resident size of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
