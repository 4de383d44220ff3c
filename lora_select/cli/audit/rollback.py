"""`lora-select rollback MODEL [--to VERSION] --by NAME --reason TEXT`: take a champion back."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "rollback", help="point `champion` to the version before, after its bytes were checked"
    )
    command.add_argument("model", metavar="MODEL", help="the registered model")
    command.add_argument("--to", metavar="VERSION", help="which version; by default the champion before this one")
    command.add_argument("--by", required=True, metavar="NAME", help="who says so")
    command.add_argument("--reason", required=True, metavar="TEXT")
    command.add_argument("--runs", default="runs", help="the runs folder whose ledger it is (default: runs)")
    command.add_argument("--tracking-uri", help="where MLflow is, when it is not where the last run says")
    command.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Move the alias and say so."""
    from lora_select.audit import office
    from lora_select.audit.alias.withdrawal import rollback

    desk = office.of_model(Path(parsed.runs), parsed.model, parsed.tracking_uri)
    entry = rollback(desk, parsed.model, by=parsed.by, reason=parsed.reason, to=parsed.to)
    was = entry.details["before"].get("champion", "none")
    print(
        f"version {entry.details['version']} is champion of {entry.model} again, version {was} is not (entry {entry.sequence})"
    )
    return 0
