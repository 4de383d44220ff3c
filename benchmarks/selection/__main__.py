"""The oracle from the command line: `sweep` runs what is missing, `score` says what every way of choosing would have lost.

python -m benchmarks.selection sweep                      # hours; stop it at any time, start it again
python -m benchmarks.selection sweep --tasks spelling section
python -m benchmarks.selection score
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.selection import shipped
from benchmarks.selection.sweep import tasks
from benchmarks.selection.sweep.candidates import NAMED, REFERENCE, candidate
from benchmarks.selection.sweep.subject import MODELS
from benchmarks.selection.sweep.table import STEPS, Setting

if TYPE_CHECKING:
    from benchmarks.selection.sweep.runner import Bench
    from lora_select.selection.candidates import Candidate

BATCH, ROWS = 8, 192


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    sweeping = commands.add_parser("sweep")
    sweeping.add_argument(
        "--tasks",
        nargs="+",
        default=list(tasks.TASKS),
        choices=[*tasks.TASKS, *tasks.CONTROLS, *tasks.LATER],
        metavar="TASK",
    )
    sweeping.add_argument("--model", default=MODELS[0], choices=MODELS)
    sweeping.add_argument("--rows", type=int, default=ROWS)
    sweeping.add_argument("--threads", type=int, default=1)
    sweeping.add_argument(
        "--candidates", nargs="+", default=list(NAMED), choices=list(NAMED), help="only these, in this order"
    )
    sweeping.add_argument("--no-rungs", dest="rungs", action="store_false", help="leave the short runs for later")
    sweeping.add_argument("--work", type=Path, default=Path("runs/oracle"), help="where spectra are kept")
    commands.add_parser("score", help="regret of every strategy")
    commands.add_parser("calibrate", help="fit the selector's constants to the sweep")
    spectra = commands.add_parser("spectra", help="keep what the scoring needs of the sweep's spectra")
    spectra.add_argument("--work", type=Path, default=Path("runs/oracle"))
    reaching = commands.add_parser(
        "reach", help="train a high-rank endpoint and keep what share of it each candidate could hold"
    )
    reaching.add_argument("--tasks", nargs="+", required=True, choices=list(tasks.TASKS), metavar="TASK")
    reaching.add_argument("--model", default=MODELS[0], choices=MODELS)
    reaching.add_argument("--work", type=Path, default=Path("runs/oracle"))
    commands.add_parser("own", help="whether constants moved by a history of runs pay, on the sweep's tables")
    commands.add_parser("rates", help="how far the shipped learning rates are from the best, on the sweep's tables")
    shipped.add(commands)
    options = parser.parse_args()
    if options.command == "shipped":
        shipped.run(options)
    elif options.command == "own":
        from benchmarks.selection import own

        own.keep()
    elif options.command == "rates":
        from benchmarks.selection import rates

        rates.keep()
    elif options.command == "sweep":
        sweep(options)
    elif options.command == "reach":
        from benchmarks.selection import reach
        from benchmarks.selection.sweep.runner import Bench

        for task in options.tasks:
            reach.keep(Bench(Setting(task, options.model, ROWS, STEPS, BATCH), options.work))
    elif options.command == "spectra":
        keep_spectra(options.work)
    else:
        from benchmarks.selection import score

        sys.exit(score.main() if options.command == "score" else score.calibrate())


def sweep(options: argparse.Namespace) -> None:
    """Candidate by candidate over all tasks, so that a half-finished sweep compares the first candidates on every task; repeats last."""
    import torch

    torch.set_num_threads(options.threads)
    from benchmarks.selection.sweep.runner import Bench

    steps = STEPS * max(1, options.rows // ROWS)
    for repeats in (False, True):
        for name in options.candidates:
            for task in options.tasks:
                setting = Setting(task, options.model, options.rows, steps, BATCH)
                complete(Bench(setting, options.work), NAMED[name], repeats, options.rungs)


def complete(bench: "Bench", parts: tuple[str, str, int], repeats: bool, rungs: bool) -> None:
    """Every run of one candidate on one setting."""
    from benchmarks.selection.sweep.schedule import next_run
    from lora_select.selection.calibration import shipped
    from lora_select.selection.learning_rate import rate_ratio

    made = candidate(*parts, bench.spectra.layers)
    if made is None:
        print(f"{bench.setting.name}: {' '.join(map(str, parts))} has no targets on this model", flush=True)
        return
    while run := next_run(bench.table, made.key, rate_ratio(made, shipped()), repeats=repeats, rungs=rungs):
        began = time.monotonic()
        outcome = bench.run(run)
        loss = bench.table.loss(run)
        words = "diverged" if outcome.diverged else f"{loss:.4f} (reference {outcome.reference:.4f})"
        print(f"{bench.setting.name} {run}: {words}, {time.monotonic() - began:.0f} s", flush=True)


def keep_spectra(work: Path) -> None:
    """Tangent share of every candidate, and its 1 / displacement, or its published rate over LoRA's: one small file for all settings."""
    from benchmarks.selection.judging import SPECTRA
    from lora_select.records import Spectra, read, write_text
    from lora_select.selection.candidates import aggregate_share

    found = json.loads(SPECTRA.read_text(encoding="utf-8")) if SPECTRA.is_file() else {}
    for file in sorted(work.glob("*/spectra.json")):
        layers = read(Spectra, file).layers
        made = [one for parts in NAMED.values() if (one := candidate(*parts, layers))]
        found[file.parent.name] = {
            one.key: {"share": (aggregate_share(one, layers) or (0.0, 1.0))[0]} | _rate_of(one) for one in made
        }
    write_text(SPECTRA, json.dumps(found, indent=1, sort_keys=True) + "\n")


def _rate_of(made: "Candidate") -> dict[str, float]:
    from lora_select.selection.calibration import LONG_RATE
    from lora_select.selection.learning_rate import lora_displacement, published_rate, rate_factor

    if made.key == REFERENCE:
        return {"displacement": lora_displacement(made)}
    published = published_rate(made)
    return {"factor": rate_factor(made)} if published is None else {"published": published / LONG_RATE}


if __name__ == "__main__":
    main()
