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
    register.add_argument("--config", default="", help="the config that trains on it (default: the deployed one)")
    register.add_argument("--by", default="", metavar="NAME", help="who registers it (default: the account)")
    register.add_argument(
        "--again", action="store_true", help="send the event although the same bytes were registered before"
    )
    register.set_defaults(run=_register)
    pending = actions.add_parser("pending", help="registered datasets that no finished run has trained on")
    pending.add_argument("--runs", default="runs", help="the runs folder (default: runs)")
    pending.add_argument("--send", action="store_true", help="send their events again, oldest first")
    pending.set_defaults(run=_pending)


def _register(parsed: argparse.Namespace) -> int:
    from lora_select.audit.ledger import account
    from lora_select.audit.registrations import enter
    from lora_select.data.events import emit_registered
    from lora_select.data.register import register

    ledger = Path(parsed.ledger)
    manifest = register(Path(parsed.path), ledger)
    details = {"name": manifest.name, "files": manifest.files, "size": manifest.size}
    by = parsed.by or account()
    entry, new = enter(ledger.parent, manifest.path, manifest.digest, by=by, config=parsed.config, details=details)
    if not new and not parsed.again:
        print(
            f"{manifest.path} ({manifest.digest[:12]}) was registered before (entry {entry.sequence}); no event was sent, --again sends it"
        )
        return 0
    print(f"registered {manifest.path} ({manifest.digest[:12]}) in {parsed.ledger} (entry {entry.sequence})")
    print(emit_registered(manifest, os.environ.get("PREFECT_API_URL"), parsed.config))
    return 0


def _pending(parsed: argparse.Namespace) -> int:
    from lora_select.audit.registrations import pending
    from lora_select.data.events import emit_registered
    from lora_select.data.register import read_ledger

    runs = Path(parsed.runs)
    found = pending(runs)
    known = {(item.path, item.digest): item for item in read_ledger(runs / "datasets.jsonl")}
    for item in found:
        print(f"entry {item.sequence}: {item.path} ({item.digest[:12]}) {item.config}".rstrip())
        manifest = known.get((item.path, item.digest))
        if parsed.send and manifest is not None:
            print(f"  {emit_registered(manifest, os.environ.get('PREFECT_API_URL'), item.config)}")
    if not found:
        print("every registered dataset has been trained on")
    return 0
