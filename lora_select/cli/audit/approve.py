"""`lora-select approve | reject RUN --by NAME --reason TEXT`: a person's word on an adapter that waits for it."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add both commands."""
    for name, text in (
        ("approve", "make the adapter of a run champion because a person says so"),
        ("reject", "leave the adapter of a run a challenger because a person says so"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest")
        command.add_argument("--by", required=True, metavar="NAME", help="who says so")
        command.add_argument("--reason", required=True, metavar="TEXT")
        command.add_argument("--tracking-uri", help="where MLflow is, when it is not where the run says")
        command.set_defaults(run=run, approve=name == "approve", override=False)
        if name == "approve":
            command.add_argument(
                "--override", action="store_true", help="although criteria are not met; they are entered by name"
            )


def run(parsed: argparse.Namespace) -> int:
    """Enter the answer and say what it led to."""
    from lora_select.audit import office
    from lora_select.audit.alias import approval

    folder = Path(parsed.run_folder)
    desk = office.of_run(folder, parsed.tracking_uri)
    answer = approval.Answer(parsed.by, parsed.reason, parsed.override)
    if not parsed.approve:
        entry = approval.reject(desk, folder, answer)
        print(f"rejected (entry {entry.sequence}); {entry.model} keeps its champion")
        return 0
    entry = approval.approve(desk, folder, answer)
    was = entry.details["before"].get("champion")
    print(
        f"version {entry.details['version']} is champion of {entry.model} (entry {entry.sequence}); before: {f'version {was}' if was else 'none'}"
    )
    return 0
