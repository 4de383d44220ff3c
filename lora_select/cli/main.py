"""`lora-select`: ask, look back, recompute. Heavy imports happen inside the commands, so that `--help` is instant."""

import argparse
import sys
from collections.abc import Sequence

from lora_select import __version__, environment
from lora_select.cli import data, doctor, ending, export, look_back, mcp, node, options, retain, ui, variants
from lora_select.cli.audit import approve, clean, ledger, rollback, verify
from lora_select.cli.line import analyze, finetune, noise, recommend
from lora_select.errors import InputError, missing

COMMANDS = (
    finetune,
    recommend,
    analyze,
    noise,
    variants,
    look_back,
    retain,
    export,
    data,
    doctor,
    mcp,
    node,
    ui,
    verify,
    ledger,
    approve,
    rollback,
    clean,
)
"""Each adds its own command."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 well, 1 a check said no or the world failed, 2 bad input, 130 stopped."""
    environment.prepare()
    return ending.exit_code(lambda: _run(arguments))


def _run(arguments: Sequence[str] | None) -> int:
    parsed = None
    try:
        parsed, rest = _parser().parse_known_args(arguments)
        options.take(parsed, rest)
        return parsed.run(parsed)
    except ModuleNotFoundError as error:
        sentence = missing(error, f"`{parsed.command}`" if parsed else "lora-select")
        if sentence is None:
            raise
        raise InputError(sentence) from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora-select", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lora-select {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
