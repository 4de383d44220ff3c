"""`lora-select explain | replay | compare | calibrate`: look back at finished runs."""

import argparse
import dataclasses
from pathlib import Path

from lora_select.cli import options


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the four commands."""
    for name, function, text in (
        ("explain", _explain, "the decision of a run, in words"),
        ("replay", _replay, "recompute the decision from its recorded evidence; exit 1 when it differs"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest")
        command.set_defaults(run=function)
        if function is _explain:
            options.add_json(command)
    calibrate = commands.add_parser(
        "calibrate", help="predictions of past runs beside what came out, and constants refitted"
    )
    calibrate.add_argument("folders", metavar="RUNS", nargs="+", help="folders of runs, such as runs")
    calibrate.add_argument("--out", help="file for the refitted constants (calibration.json)")
    calibrate.set_defaults(run=_calibrate)
    compare = commands.add_parser("compare", help="runs side by side, and a link to MLflow's comparison view")
    compare.add_argument("run_folders", metavar="RUN", nargs="+")
    options.add_json(compare)
    compare.set_defaults(run=_compare)


def _explain(parsed: argparse.Namespace) -> int:
    from lora_select.pipeline.history import read_run
    from lora_select.report.verdict import before_training, examples, in_fewer_bits
    from lora_select.selection.explanation import answer, explain
    from lora_select.selection.prediction import outcome

    run = read_run(parsed.run_folder)
    made = outcome(run.decision, run.evaluation, run.adapter) if run.evaluation else None
    if parsed.json:
        found = dataclasses.asdict(made) | {"inside": made.inside} if made else None
        shown = options.plain(run.few_shot) if run.few_shot else None
        told = {"decision": options.plain(run.decision), "outcome": found, "answer": answer(run.decision)}
        options.print_json(told | {"few_shot": shown})
        return 0
    for line in before_training(run.few_shot) if run.few_shot else ():
        print(line)
    print(explain(run.decision))
    if made:
        print(f"\nWhat came out: {made}.")
    for line in (examples(run.evaluation), in_fewer_bits(run.evaluation)) if run.evaluation else ():
        if line:
            print(line)
    return 0


def _calibrate(parsed: argparse.Namespace) -> int:
    from lora_select.pipeline.calibrate import calibrate

    print(calibrate(parsed.folders, Path(parsed.out) if parsed.out else None))
    return 0


def _replay(parsed: argparse.Namespace) -> int:
    from lora_select.pipeline.history import is_earlier, read_run, replay

    differences = replay(parsed.run_folder)
    if not differences and is_earlier(read_run(parsed.run_folder).decision):
        print("the recorded evidence gives the recorded decision in every number; an earlier version worded it")
        return 0
    if not differences:
        print("the recorded evidence gives the recorded decision, byte for byte")
        return 0
    print("the recorded decision does not follow from the recorded evidence:")
    for difference in differences:
        print(f"  {difference}")
    return 1


def _compare(parsed: argparse.Namespace) -> int:
    from lora_select.pipeline.history import compared, comparison

    if parsed.json:
        options.print_json(compared(parsed.run_folders))
        return 0
    print(comparison(parsed.run_folders))
    return 0
