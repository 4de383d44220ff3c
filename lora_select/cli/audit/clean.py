"""`lora-select clean`: what takes disk and is not needed goes, after it was named."""

import argparse
import re
from pathlib import Path
from typing import Any

UNITS = {"h": 1 / 24, "d": 1.0, "w": 7.0}


def add(commands: Any) -> None:
    """Add the command."""
    command = commands.add_parser(
        "clean", help="remove checkpoints of finished trainings, orphans and, with --older, old runs"
    )
    command.add_argument("--runs", default="runs", help="the runs folder (default: runs)")
    command.add_argument(
        "--older", metavar="AGE", type=age, help="also runs that ended longer ago, such as 30d, 12h or 4w"
    )
    command.add_argument(
        "--keep-champions", action=argparse.BooleanOptionalAction, default=True,
        help="keep every run that ever held the alias champion, which a rollback may lead to (default)",
    )  # fmt: skip
    command.add_argument("--dry-run", action="store_true", help="only say what would go and how much")
    command.set_defaults(run=run)


def age(text: str) -> float:
    """Days.

    >>> age("12h"), age("30d"), age("2w")
    (0.5, 30.0, 14.0)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([hdw])", text.strip())
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write 30d, 12h or 4w")
    return float(match[1]) * UNITS[match[2]]


def run(parsed: argparse.Namespace) -> int:
    """Say what goes, and let it go unless it is a dry run."""
    from lora_select.audit.clean_up import clean, plan

    root = Path(parsed.runs)
    made = plan(root, older_days=parsed.older, keep_champions=parsed.keep_champions)
    for piece in made.pieces:
        print(f"{size(piece.size):>9}  {piece.path}  ({piece.why})")
    for name, why in made.kept:
        print(f"{'stays':>9}  {root / name}  ({why})")
    if not made.pieces:
        print("nothing to remove")
        return 0
    if not parsed.dry_run:
        clean(root, made)
    print(f"{size(made.size)} {'would go' if parsed.dry_run else 'removed'}")
    return 0


def size(amount: int) -> str:
    """Bytes for people.

    >>> size(1_500_000)
    '1.5 MB'
    """
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if amount >= scale:
            return f"{amount / scale:.1f} {unit}"
    return f"{amount} B"
