"""Where stages keep their files: `runs/stages/<stage>/<key>/`, and the view of one run in `runs/<run-key>/`.

A stage is done when its folder holds `record.json`, which is written last. Everything before that is an unfinished
attempt, which the stage may take up again.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lora_select import records

R = TypeVar("R")
RECORD_FILE = "record.json"


@dataclass(frozen=True)
class StageRef:
    """A finished stage: its name, its key and the SHA-256 of its record. Small enough for Prefect's result store."""

    stage: str
    key: str
    digest: str


def folder_of(root: str | Path, stage: str, key: str) -> Path:
    """The folder of one piece of work."""
    return Path(root) / "stages" / stage / key


def stage_folder(root: str | Path, ref: StageRef) -> Path:
    """The folder of a finished stage."""
    return folder_of(root, ref.stage, ref.key)


def load(root: str | Path, ref: StageRef, kind: type[R]) -> R:
    """The record of a finished stage."""
    return records.read(kind, stage_folder(root, ref) / RECORD_FILE)


def finished(root: str | Path, stage: str, key: str) -> StageRef | None:
    """The stage's reference if its record and all files that the record names are there, else None.

    Files are checked by size; a record that no longer parses, or names a file that is gone or cut, is not finished.
    """
    folder = folder_of(root, stage, key)
    record = folder / RECORD_FILE
    try:
        values = json.loads(record.read_bytes())
    except (OSError, ValueError):
        return None
    for path, size in _files(values):
        file = folder / path
        if not file.is_file() or file.stat().st_size != size:
            return None
    return StageRef(stage, key, records.sha256_file(record))


def view(root: str | Path, run_key: str, ref: StageRef, name: str) -> None:
    """Show a finished stage in the run's folder: `<name>.json` is a copy of its record, its other files are links."""
    run = Path(root) / run_key
    run.mkdir(parents=True, exist_ok=True)
    source = stage_folder(root, ref)
    records.write_text(run / f"{name}.json", (source / RECORD_FILE).read_text(encoding="utf-8"))


def link(root: str | Path, run_key: str, target: Path, name: str) -> None:
    """Put a relative link `name` to `target` into the run's folder, replacing an older one in one step."""
    run = Path(root) / run_key
    run.mkdir(parents=True, exist_ok=True)
    temporary = run / f".{name}.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(os.path.relpath(target.resolve(), run.resolve()))
    os.replace(temporary, run / name)


def point_latest(root: str | Path, run_key: str) -> None:
    """Make `runs/latest` point to the run."""
    temporary = Path(root) / f".latest.{os.getpid()}"
    temporary.unlink(missing_ok=True)
    temporary.symlink_to(run_key)
    os.replace(temporary, Path(root) / "latest")


def _files(value: Any) -> list[tuple[str, int]]:
    if isinstance(value, dict):
        if set(value) == {"path", "sha256", "size"}:
            return [(value["path"], value["size"])]
        return [found for item in value.values() for found in _files(item)]
    if isinstance(value, list):
        return [found for item in value for found in _files(item)]
    return []
