"""The oracle from the command line: `sweep` runs what is missing, `score` says what every way of choosing would have lost.

python -m benchmarks.selection sweep                      # hours; stop it at any time, start it again
python -m benchmarks.selection sweep --tasks spelling section
python -m benchmarks.selection score
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

from benchmarks.selection import tasks
from benchmarks.selection.table import Setting

STEPS, BATCH, ROWS = 24, 8, 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sweeping = commands.add_parser("sweep")
    sweeping.add_argument("--tasks", nargs="+", default=list(tasks.TASKS), choices=list(tasks.TASKS))
    sweeping.add_argument("--model", default="smollm2-135m")
    sweeping.add_argument("--rows", type=int, default=ROWS)
    sweeping.add_argument("--threads", type=int, default=1)
    sweeping.add_argument("--levels", type=int, default=None, help="only the first so many candidates")
    sweeping.add_argument("--work", type=Path, default=Path("runs/oracle"), help="where spectra are kept")
    commands.add_parser("score")
    options = parser.parse_args()
    if options.command == "sweep":
        sweep(options)
    else:
        from benchmarks.selection.score import main as score

        sys.exit(score())


def sweep(options: argparse.Namespace) -> None:
    """Candidate by candidate over all tasks, so that a half-finished sweep compares the first candidates on every task; repeats last."""
    import torch

    torch.set_num_threads(options.threads)
    from benchmarks.selection.candidates import SWEPT
    from benchmarks.selection.runner import Bench

    for repeats, candidate, task in itertools.product((False, True), SWEPT[: options.levels], options.tasks):
        setting = Setting(task, options.model, options.rows, STEPS * max(1, options.rows // ROWS), BATCH)
        complete(Bench(setting, options.work), candidate, repeats)


def complete(bench, parts, repeats: bool) -> None:
    """Every run of one candidate on one setting."""
    from benchmarks.selection.candidates import candidate
    from benchmarks.selection.schedule import next_run
    from lora_select.selection.learning_rate import REFERENCE_RATE, learning_rate

    made = candidate(*parts, bench.spectra.layers)
    while run := next_run(bench.table, made.key, learning_rate(made) / REFERENCE_RATE, repeats=repeats):
        began = time.monotonic()
        outcome = bench.run(run)
        loss = bench.table.loss(run)
        words = "diverged" if outcome.diverged else f"{loss:.4f} (reference {outcome.reference:.4f})"
        print(f"{bench.setting.name} {run}: {words}, {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main()
