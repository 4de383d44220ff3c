"""Giving disk back: what may go, and how much that is. What the ledger's champions, requests or a registered alias need stays."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lora_select.audit import run_entries
from lora_select.audit.alias import standing
from lora_select.audit.books import seal
from lora_select.audit.books.ledger import Ledger, in_folder
from lora_select.errors import InputError
from lora_select.records import sha256_file
from lora_select.tracking import names

DAY = 86_400.0
CLEANED = "cleaned"
JUST_NOW = 3600.0
"""A stage that ended within the hour may belong to a run that has not shown it yet."""


@dataclass(frozen=True)
class Piece:
    """A folder that may go, its bytes, and why."""

    path: Path
    size: int
    why: str


@dataclass(frozen=True)
class Plan:
    """What goes, what stays although it is old, and why it stays."""

    pieces: tuple[Piece, ...]
    kept: tuple[tuple[str, str], ...]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return sum(piece.size for piece in self.pieces)


def plan(root: Path, *, older_days: float | None = None, keep_champions: bool = True, now: float | None = None) -> Plan:
    """Say what may go below a runs folder; nothing is removed.

    Always: checkpoints of finished trainings, and finished stages that no run's folder names. With `older_days` also what is older than
    that: whole runs, unfinished attempts, and what was set aside because it had been changed. A run stays that waits for an answer, whose
    promotion is unfinished, or that holds an alias now; with `keep_champions` also every run that ever held `champion`, to which a
    rollback may lead.

    Raises:
        InputError: there is no such folder.
    """
    if not root.is_dir():
        raise InputError(f"{root} is no runs folder; name one, such as runs")
    moment = time.time() if now is None else now
    folders = [path for path in _runs_in(root) if (path / run_entries.STAGES).is_file()]
    needed = _needed(in_folder(root), keep_champions)
    old = [run for run in folders if older_days is not None and moment - _changed(run) > older_days * DAY]
    gone = [run for run in old if run.name not in needed]
    kept = tuple((run.name, needed[run.name]) for run in old if run.name in needed)
    staying = [run for run in _runs_in(root) if run not in gone]
    named = {place.folder for run in staying for place in run_entries.stages(run).values()}
    shown = {sha256_file(file) for run in staying for file in run.glob("*.json") if not run_entries.stages(run)}
    pieces = [Piece(run, size_of(run), f"ended {(moment - _changed(run)) / DAY:.0f} days ago") for run in gone]
    for folder in sorted(path for path in (root.resolve() / "stages").glob("*/*") if path.is_dir()):
        record, age = folder / run_entries.RECORD, moment - _changed(folder)
        if not record.is_file():
            if older_days is not None and age > max(older_days, 1.0) * DAY:
                pieces.append(Piece(folder, size_of(folder), f"an attempt that ended {age / DAY:.0f} days ago"))
        elif folder not in named and sha256_file(record) not in shown:
            if age > JUST_NOW:
                pieces.append(Piece(folder, size_of(folder), "no run that stays uses it"))
        elif (folder / seal.DROPPED).is_dir():
            pieces.append(Piece(folder / seal.DROPPED, size_of(folder / seal.DROPPED), "its training has ended"))
    if (root / run_entries.CHANGED).is_dir() and older_days is not None:
        aside = [
            path
            for path in sorted((root / run_entries.CHANGED).iterdir())
            if moment - path.stat().st_mtime > older_days * DAY
        ]
        pieces += [Piece(path, size_of(path), "was set aside because it had been changed") for path in aside]
    return Plan(tuple(pieces), kept)


def clean(root: Path, made: Plan) -> None:
    """Remove what a plan names, and enter it in the ledger first.

    Raises:
        WorldError: the ledger cannot be written; then nothing is removed.
    """
    if not made.pieces:
        return
    gone = [
        {"path": str(piece.path.resolve().relative_to(root.resolve())), "bytes": piece.size, "why": piece.why}
        for piece in made.pieces
    ]
    in_folder(root).append(CLEANED, details={"removed": gone})
    for piece in made.pieces:
        shutil.rmtree(piece.path) if piece.path.is_dir() else piece.path.unlink()
    latest = root / "latest"
    if latest.is_symlink() and not latest.exists():
        latest.unlink()


def size_of(path: Path) -> int:
    """Bytes of a file or of all files below a folder; links count nothing."""
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return sum(file.lstat().st_size for file in files if not file.is_symlink())


def _needed(ledger: Ledger, keep_champions: bool) -> dict[str, str]:
    """Runs that stay whatever their age, and why."""
    entries = ledger.entries()
    needed: dict[str, str] = {}
    for run in {entry.run for entry in entries if entry.run}:
        found = standing.of_run(entries, run)
        if found is not None and found.state in (standing.AWAITING, "approved"):
            needed[run] = found.state
    needed |= {entry.run: "its promotion is unfinished" for entry in standing.unfinished(entries) if entry.run}
    for model in {entry.model for entry in entries if entry.model}:
        now = standing.aliases(entries, model)
        for entry in entries:
            if entry.model != model or not entry.run or "aliases" not in entry.details:
                continue
            held = [alias for alias, version in entry.details["aliases"].items() if now.get(alias) == version]
            if held:
                needed[entry.run] = f"its adapter is {' and '.join(held)} of {model}"
            elif keep_champions and names.CHAMPION in entry.details["aliases"]:
                needed.setdefault(entry.run, f"its adapter was champion of {model}")
    return needed


def _changed(folder: Path) -> float:
    return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))


def _runs_in(root: Path) -> list[Path]:
    return sorted(
        path for path in root.iterdir() if path.is_dir() and not path.is_symlink() and (path / "config.json").is_file()
    )
