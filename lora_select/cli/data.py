"""`lora-select data`: datasets."""

import argparse
import os
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    actions = commands.add_parser("data", help="datasets").add_subparsers(required=True, metavar="ACTION")
    register = actions.add_parser("register", help="note a dataset and tell Prefect, which starts finetune/on-dataset")
    register.add_argument("path")
    register.add_argument("--ledger", default="runs/datasets.jsonl", help="where registrations are kept")
    register.set_defaults(run=_register)


def _register(parsed: argparse.Namespace) -> int:
    from lora_select.data.events import emit_registered
    from lora_select.data.register import register

    manifest = register(Path(parsed.path), Path(parsed.ledger))
    print(f"registered {manifest.path} ({manifest.digest[:12]}) in {parsed.ledger}")
    print(emit_registered(manifest, os.environ.get("PREFECT_API_URL")))
    return 0
