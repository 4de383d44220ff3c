"""`lora-select finetune`: the whole line, from rows to a judged adapter."""

import argparse

from lora_select.cli import options

SECTIONS = (
    "base_model",
    "dataset",
    "gate",
    "analysis",
    "selection",
    "training",
    "retention",
    "evaluation",
    "promotion",
    "cost",
    "tracking",
)


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    finetune = commands.add_parser(
        "finetune",
        help="the whole line: measure, choose, train, check, evaluate, report",
        allow_abbrev=False,
    )
    options.add_inputs(finetune, SECTIONS)
    finetune.add_argument("--dry-run", action="store_true", help="stop after the plan")
    finetune.set_defaults(run=_finetune)


def _finetune(parsed: argparse.Namespace) -> int:
    from lora_select.api import last_lines
    from lora_select.pipeline import line
    from lora_select.pipeline.run import opened

    config = options.config_of(parsed)
    line.check_installed()
    with opened(config, observers=[options.terminal(parsed)]) as run:
        if parsed.dry_run:
            last_lines.say_plan(run, line.plan(run)[1].record)
        else:
            last_lines.say_result(run, line.finetune(run))
    return 0
