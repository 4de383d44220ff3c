"""`lora-select variants`: the catalogue for a model and a setting."""

import argparse
import sys


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    variants = commands.add_parser(
        "variants", help="the catalogue for your model and setting, and what is refused and why"
    )
    variants.add_argument("--model", help="as `base_model.source`; without it one 4096 x 4096 layer")
    variants.add_argument("--r", type=int, default=16)
    variants.add_argument("--base", choices=("nf4", "int8"))
    variants.add_argument("--serve", choices=("vllm",))
    variants.add_argument("--must-merge", action="store_true")
    variants.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=0)
    variants.set_defaults(run=_variants)


def _variants(parsed: argparse.Namespace) -> int:
    from lora_select.cli import listing

    asked = {"r": parsed.r, "base": parsed.base, "serve": parsed.serve, "must_merge": parsed.must_merge}
    lines, where = listing.listing(parsed.model, **asked, zero_stage=parsed.zero_stage)
    shown = listing.show(lines, where, plain=not sys.stdout.isatty())
    if isinstance(shown, str):
        print(shown)
    else:
        from rich.console import Console

        Console().print(shown)
    return 0
