"""`lora-select verify RUN`: every file of a run against its records, its seals and the ledger."""

import argparse
from pathlib import Path
from typing import Any


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "verify", help="every file of a run against its records and the ledger; exit 1 names what was changed"
    )
    command.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest")
    command.add_argument("--tracking-uri", help="where MLflow is, when it is not where the run says")
    command.add_argument("--offline", action="store_true", help="do not ask MLflow for the ledger's head")
    command.set_defaults(run=run)


def run(parsed: argparse.Namespace) -> int:
    """Print what was found; 0 when every file is what it was, 1 when one is not or MLflow could not be asked."""
    from lora_select.audit import office
    from lora_select.audit.verification import verify
    from lora_select.errors import WorldError
    from lora_select.tracking.tracker import read_notes

    folder, store, away = Path(parsed.run_folder), None, None
    if not parsed.offline and (
        read_notes(folder) or parsed.tracking_uri
    ):  # a run that no store was told of has none to ask
        try:
            store = office.of_run(folder, parsed.tracking_uri).store
        except (WorldError, ValueError) as error:
            away = str(error)
    found = verify(folder, store)
    for fault in found.faults:
        print(f"BAD  {fault}")
    for note in found.notes:
        print(f"note {note}")
    if away:
        print(f"BAD  MLflow was not asked: {away} (--offline does without)")
    if found.faults or away:
        count = len(found.faults)
        print(f"run {found.run}: {count} {'fault' if count == 1 else 'faults'} in {found.files} files")
        return 1
    print(f"run {found.run}: {found.files} files are what they were when the run made them")
    return 0
