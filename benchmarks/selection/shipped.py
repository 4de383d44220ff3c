"""What a user gets: the learning rate that the rule ships, run as it is, and the defaults of other trainers beside it.

The sweep has learning rates a factor 3 apart; the rule predicts values between them. Here the predicted value itself is trained, with
constants fitted as `calibrate` fits those that are shipped (causal models at the sweep's usual steps), leaving the setting's own task out.
"""

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.selection.case import best_run
from benchmarks.selection.judging import displacement, fit, shipped_with
from benchmarks.selection.sweep.candidates import REFERENCE
from benchmarks.selection.sweep.schedule import SEEDS
from benchmarks.selection.sweep.table import Run, Setting, Table, tables
from benchmarks.selection.sweep.tasks import CONTROLS
from lora_select.selection.calibration import reference_rate

SHIPPED = "what the rule ships"
LORA_8, LORA_32 = "lora-all-linear-r8", "lora-all-linear-r32"
TINKER = "Tinker's formula, r 32"
DEFAULTS = {
    "1e-5 (training_hub, AutoModel, Together)": (REFERENCE, 1e-5),
    "2e-5 (TRL)": (REFERENCE, 2e-5),
    "1e-4, r 8 (LLaMA-Factory, ms-swift)": (LORA_8, 1e-4),
    "2e-4 (Unsloth, Predibase)": (REFERENCE, 2e-4),
    "3e-4": (REFERENCE, 3e-4),
    "5e-4": (REFERENCE, 5e-4),
}
"""What a trainer takes when nothing is said, each at its own rank (16 where it names none)."""
HIDDEN = {"smollm2-135m": 576}
"""Widths of the models whose family the published formula knows."""
LLAMA_POWER = 0.781


def tinker_rate(hidden: int, power: float = LLAMA_POWER) -> float:
    """The published formula: 5e-5 x 10 x (2000 / hidden)^power, two digits (Tinker's cookbook, hyperparameters).

    >>> tinker_rate(576)
    0.0013
    """
    return float(f"{5e-5 * 10 * (2000 / hidden) ** power:.1e}")


def shipped_rate(table: Table, known: Sequence[Table]) -> float:
    """LoRA's learning rate on the setting by the shipped rule, its constants fitted without the setting's own task."""
    own = table.setting.task.split("-")[0]
    others = [other for other in known if shipped_with(other) and other.setting.task.split("-")[0] != own]
    return reference_rate(table.setting.steps, fit(others), displacement(table))


def defaults(table: Table, seed: int = 0) -> dict[str, Run]:
    """The runs of other trainers' defaults on a setting, by name."""
    found = {name: Run(key, rate, seed) for name, (key, rate) in DEFAULTS.items()}
    hidden = HIDDEN.get(table.setting.model)
    return found | ({TINKER: Run(LORA_32, tinker_rate(hidden), seed)} if hidden else {})


def settings() -> list[Table]:
    """Those in which LoRA's best learning rate is bracketed."""
    return [table for table in tables() if table.setting.task not in CONTROLS and best_run(table, REFERENCE)]


def wanted(known: Sequence[Table], chosen: Sequence[Table], seeds: int, *, rivals: bool) -> Iterator[tuple[Table, Run]]:
    """Missing runs, seed by seed and setting by setting: the shipped learning rate first, then the defaults."""
    for seed in range(seeds):
        for table in chosen:
            theirs = defaults(table, seed).values() if rivals else ()
            runs = (Run(REFERENCE, shipped_rate(table, known), seed), *theirs)
            yield from ((table, run) for run in runs if run not in table.outcomes)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command `shipped`."""
    command = commands.add_parser("shipped", help="train the rule's own learning rates and other trainers' defaults")
    command.add_argument("--model", nargs="+", default=["minilm"], help="of these models")
    command.add_argument("--tasks", nargs="+", default=[], help="only these; all where none is named")
    command.add_argument("--rows", nargs="+", type=int, default=[], help="only settings of so many rows")
    command.add_argument("--seeds", type=int, default=1, choices=range(1, len(SEEDS) + 2))
    command.add_argument("--rivals", action="store_true", help="also the defaults of other trainers")
    command.add_argument("--score", action="store_true", help="train nothing; say what each learning rate costs")
    command.add_argument("--most", type=int, default=10**6, help="stop after so many runs")
    command.add_argument("--work", type=Path, default=Path("runs/oracle"), help="where spectra are kept")


def run(options: argparse.Namespace) -> None:
    """Train what is missing, one line a run; resumes where it was stopped."""
    if options.score:
        from benchmarks.selection import costs

        costs.keep()
        return
    from benchmarks.selection.sweep.runner import Bench

    bench: Bench | None = None
    refused: set[Setting] = set()
    known = settings()
    chosen = [
        table
        for table in known
        if table.setting.model in options.model
        and (not options.tasks or table.setting.task in options.tasks)
        and (not options.rows or table.setting.rows in options.rows)
    ]
    for done, (table, one) in enumerate(list(wanted(known, chosen, options.seeds, rivals=options.rivals))):
        if done >= options.most:
            return
        if table.setting in refused:
            continue
        if bench is None or bench.setting != table.setting:
            try:
                bench = Bench(table.setting, options.work)
            except ValueError as error:
                refused.add(table.setting)
                print(error, flush=True)
                continue
        began = time.monotonic()
        bench.run(one)
        loss = bench.table.loss(one)
        print(f"{table.setting.name} {one}: {loss:.4f}, {time.monotonic() - began:.0f} s", flush=True)
