"""`lora-select ledger verify | show [MODEL]`: whether the ledger is whole, and what it holds."""

import argparse
from typing import Any


def add(commands: Any) -> None:
    """Add the command."""
    actions = commands.add_parser("ledger", help="who had what in production and why").add_subparsers(
        required=True, metavar="ACTION"
    )
    check = actions.add_parser("verify", help="an edited, dropped, reordered or cut off entry is named; exit 1")
    show = actions.add_parser("show", help="the entries of a model, oldest first")
    show.add_argument("model", metavar="MODEL", nargs="?", help="the registered model; without it everything")
    show.add_argument("--json", action="store_true", help="the entries as they are, one JSON object a line")
    for command in (check, show):
        command.add_argument("--runs", default="runs", help="the runs folder (default: runs)")
    check.add_argument("--tracking-uri", help="where MLflow is, when it is not where the last run says")
    check.add_argument("--offline", action="store_true", help="do not ask MLflow for the ledger's head")
    check.set_defaults(run=verify)
    show.set_defaults(run=show_entries)


def verify(parsed: argparse.Namespace) -> int:
    """Check the chain and, through MLflow's head, its end; 1 when something was done to it."""
    from lora_select.audit import office
    from lora_select.audit.alias import standing
    from lora_select.audit.books import anchor, chain
    from lora_select.audit.books.ledger import in_folder
    from lora_select.errors import WorldError

    ledger = in_folder(parsed.runs)
    found = chain.check(ledger.path)
    faults = list(found.faults)
    asked = not parsed.offline and (bool(parsed.tracking_uri) or office.tracked(ledger))
    if asked:
        try:
            store = office.any_store(ledger, parsed.tracking_uri)
            faults += [*anchor.faults(ledger, found.entries, store), *standing.unexplained(found.entries, store)]
        except (WorldError, ValueError) as error:
            faults.append(f"MLflow was not asked for the ledger's head: {error} (--offline does without)")
    for fault in faults:
        print(f"BAD  {fault}")
    notes = [*found.notes, *(_open(entry) for entry in standing.unfinished(found.entries))]
    for note in notes:
        print(f"note {note}")
    if faults:
        return 1
    print(
        f"{ledger.path}: {len(found.entries)} entries, the chain is whole"
        + ("" if asked else " (its end was not compared with MLflow)")
    )
    return 0


def show_entries(parsed: argparse.Namespace) -> int:
    """Print the entries."""
    from lora_select.audit.books.ledger import in_folder, to_line
    from lora_select.errors import InputError

    ledger = in_folder(parsed.runs)
    entries = ledger.of(model=parsed.model) if parsed.model else ledger.entries()
    if not entries:
        known = sorted({entry.model for entry in ledger.entries() if entry.model})
        what = (
            f"no entry of model {parsed.model!r}; models: {', '.join(known) or 'none'}" if parsed.model else "no entry"
        )
        raise InputError(f"{ledger.path} holds {what}; name another folder with --runs")
    for entry in entries:
        print(to_line(entry) if parsed.json else line_of(entry))
    return 0


def line_of(entry: Any) -> str:
    """An entry as a person reads it."""
    details = entry.details
    aliases = ", ".join(
        f"{alias} -> version {version or 'none'}" for alias, version in details.get("aliases", {}).items()
    )
    words = {
        "dataset": details.get("path", ""),
        "decision": "passed" if details.get("passed") else f"blocked: {', '.join(details.get('criteria', {}))}",
        "approval-requested": f"version {details.get('version')} until {details.get('until')}",
        "approved": details.get("reason", "")
        + (f" (overrides {', '.join(details['override'])})" if details.get("override") else ""),
        "abandoned": details.get("reason", ""),
        "cleaned": f"{len(details.get('removed', ()))} folders",
    }.get(entry.kind, aliases or details.get("reason", ""))
    who = entry.by if entry.by == "policy" else f"{entry.by} ({entry.account})"
    return f"{entry.sequence:>5}  {entry.time[:19]}  {entry.kind:18} {entry.model or '-':16} {entry.run[:12] or '-':12} {who}: {words}".rstrip(
        ": "
    )


def _open(entry: Any) -> str:
    return f"entry {entry.sequence} ({entry.kind}) was begun and not ended; the next promotion of {entry.model} ends it"
