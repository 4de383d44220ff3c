"""`lora-select data`: check a dataset, look at its rows, note it."""

import argparse
import os
import sys
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command and its actions."""
    actions = commands.add_parser("data", help="datasets: check, show, register").add_subparsers(
        required=True, metavar="ACTION"
    )
    _add_check(actions)
    _add_show(actions)
    register = actions.add_parser("register", help="note a dataset and tell Prefect, which starts finetune/on-dataset")
    register.add_argument("path")
    register.add_argument(
        "--runs", default="runs", help="the runs folder, whose ledger keeps registrations (default: runs)"
    )
    register.add_argument(
        "--config",
        metavar="FILE",
        help="the config that trains on it, with its own model name (default: the deployment's)",
    )
    register.add_argument("--by", default="", metavar="NAME", help="who registers it (default: the account)")
    register.add_argument(
        "--again", action="store_true", help="send the event although the same bytes were registered before"
    )
    register.set_defaults(run=_register)
    pending = actions.add_parser("pending", help="registered datasets that no finished run has trained on")
    pending.add_argument("--runs", default="runs", help="the runs folder (default: runs)")
    pending.add_argument("--send", action="store_true", help="send their events again, oldest first")
    pending.set_defaults(run=_pending)


def _add_check(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    check = actions.add_parser("check", help="what would ruin a fine-tune, by file and line; exit 1 when refused")
    check.add_argument("source", metavar="SOURCE", help="a file, a folder, a pattern, a hub id or sample:NAME")
    check.add_argument("--eval", help="the rows that are evaluated on; they must not be among the training rows")
    check.add_argument("--against", help="another dataset, such as last month's, to compare with")
    check.add_argument(
        "--benchmark",
        action="append",
        default=[],
        metavar="PATH",
        help="a benchmark whose items must not be in the rows: a path, or package:path; may be repeated",
    )
    check.add_argument("--model", help="a model whose control tokens must not be in the rows")
    check.add_argument(
        "--rule",
        action="append",
        default=[],
        metavar="NAME=ACTION",
        help="what a rule does: refuse, warn, fix or off; may be repeated",
    )
    check.add_argument("--json", action="store_true", help="the record as JSON")
    check.set_defaults(run=_check)


def _add_show(actions: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    show = actions.add_parser("show", help="rows as text, or with --model as tokens, what is learnt marked")
    show.add_argument("source", metavar="SOURCE")
    show.add_argument("--model", help="renders and tokenises the rows")
    show.add_argument("-n", type=int, default=5, metavar="N", help="how many rows (default: 5)")
    show.add_argument("--finding", metavar="NAME", help="the rows that this rule of `data check` concerns")
    show.add_argument("--eval", help="the evaluation rows, for the rule leak")
    show.add_argument("--benchmark", action="append", default=[], metavar="PATH", help="for the rule contamination")
    show.add_argument("--max-length", type=int, default=1024, metavar="N", help="default: 1024")
    show.set_defaults(run=_show)


def _check(parsed: argparse.Namespace) -> int:
    from lora_select import progress, records
    from lora_select.data.gate import check, text

    with (progress.bar if sys.stdout.isatty() else progress.silence)("check") as report:
        gate = check.check_data(
            parsed.source,
            eval=parsed.eval,
            against=parsed.against,
            benchmarks=parsed.benchmark,
            model=parsed.model,
            actions=_actions(parsed.rule),
            progress=report,
        )
    print(records.to_json(gate) if parsed.json else text.full(gate), end="" if parsed.json else "\n")
    return 1 if gate.verdict == "refused" else 0


def _actions(given: list[str]) -> dict[str, str]:
    from lora_select.errors import InputError

    wrong = [item for item in given if "=" not in item]
    if wrong:
        raise InputError(f"--rule {wrong[0]!r} must read NAME=ACTION, such as near-duplicates=refuse")
    return {name: action for name, _, action in (item.partition("=") for item in given)}


def _show(parsed: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.text import Text

    from lora_select.data.show import shown

    console = Console(highlight=False)
    plain = not console.is_terminal
    count = 0
    for heading, pieces in shown(
        parsed.source,
        model=parsed.model,
        count=parsed.n,
        finding=parsed.finding,
        max_length=parsed.max_length,
        eval_source=parsed.eval,
        benchmarks=parsed.benchmark,
    ):
        count += 1
        line = Text(f"\n{heading}\n", style="bold")
        for learnt, text in pieces:
            line.append(f"«{text}»" if learnt and plain else text, style="green" if learnt else "dim")
        print(line.plain) if plain else console.print(line)
    if not count:
        print(f"no row of {parsed.source}" + (f" is concerned by {parsed.finding}" if parsed.finding else ""))
    else:
        print("\n«…» is learnt" if plain else "\ngreen is learnt")
    return 0


def _register(parsed: argparse.Namespace) -> int:
    from lora_select.audit.books.ledger import account
    from lora_select.audit.registrations import enter, pending, put_back
    from lora_select.config import load
    from lora_select.data.events import emit_registered
    from lora_select.data.register import manifest

    made, runs, by = manifest(Path(parsed.path)), Path(parsed.runs), parsed.by or account()
    details: dict[str, object] = {"name": made.name, "files": made.files, "size": made.size}
    if parsed.config:
        load(parsed.config)  # what is wrong with it is said to who registers, and not by a run later
        details["config"] = str(Path(parsed.config).resolve())
    entry, new = enter(runs, made.path, made.digest, by=by, details=details)
    if not new and not parsed.again:
        waits = entry.sequence in {item.sequence for item in pending(runs)}
        print(
            f"unchanged: {made.path} ({made.digest[:12]}) was registered before (entry {entry.sequence}) and "
            f"{'waits for its run' if waits else 'was trained on'}; no event was sent, --again sends it"
        )
        return 0
    put_back(runs, entry.sequence, by=by, reason="sent again")
    print(f"registered {made.path} ({made.digest[:12]}) in the ledger of {runs} (entry {entry.sequence})")
    print(emit_registered(made.path, made.digest, os.environ.get("PREFECT_API_URL")))
    return 0


def _pending(parsed: argparse.Namespace) -> int:
    from lora_select.audit.books.ledger import account
    from lora_select.audit.registrations import pending, put_back
    from lora_select.data.events import emit_registered

    found = pending(Path(parsed.runs))
    for item in found:
        print(f"entry {item.sequence}: {item.path} ({item.digest[:12]})")
        if parsed.send:
            put_back(Path(parsed.runs), item.sequence, by=account(), reason="sent again")
            print(f"  {emit_registered(item.path, item.digest, os.environ.get('PREFECT_API_URL'))}")
    if not found:
        print("every registered dataset has been trained on")
    return 0
