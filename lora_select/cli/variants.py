"""`lora-select variants`: the catalogue for a model and a setting."""

import argparse
import dataclasses
import sys

from lora_select.cli import options


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    variants = commands.add_parser(
        "variants", help="the catalogue for your model and setting, and what is refused and why", allow_abbrev=False
    )
    variants.add_argument("--model", help="as `base_model.source`; without it one 4096 x 4096 layer")
    options.add_constraints(variants)
    options.add_json(variants)
    variants.set_defaults(run=_variants)


def _variants(parsed: argparse.Namespace) -> int:
    from lora_select.cli.variants_table import show
    from lora_select.variants.listing import DEFAULT_RANK, listing

    constraints = options.constraints_of(parsed)
    lines, where = listing(parsed.model, constraints.r or DEFAULT_RANK, constraints)
    if parsed.json:
        options.print_json({"counted_on": where, "variants": [dataclasses.asdict(line) for line in lines]})
        return 0
    shown = show(lines, where, plain=not sys.stdout.isatty())
    if isinstance(shown, str):
        print(shown)
    else:
        from rich.console import Console

        Console().print(shown)
    return 0
