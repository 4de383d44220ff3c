"""Where stages keep their files: `runs/stages/<stage>/<key>/`, and the view of one run in `runs/<run-key>/`.

A stage is done when its folder holds `record.json`, which is written last, and every file is what `seal.json` says. What comes
before is an unfinished attempt, which the stage may take up again. What was changed after it was sealed is never taken up.
"""

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lora_select import records
from lora_select.audit.books import seal
from lora_select.errors import WorldError

R = TypeVar("R")
RECORD_FILE = "record.json"
STAGES_FILE = "stages.json"
CHANGED = "changed"


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
    """The record of a finished stage.

    Raises:
        WorldError: the record is not the one that was referred to.
    """
    record = stage_folder(root, ref) / RECORD_FILE
    if not record.is_file() or records.sha256_file(record) != ref.digest:
        raise WorldError(f"{record} was changed since it was made; run the same command again, which makes it anew")
    return records.read(kind, record)


def intact(root: str | Path, ref: StageRef) -> Path:
    """The folder of a finished stage, after a look at every file in it.

    Raises:
        WorldError: a file was changed, is gone or was put there since; the message names it.
    """
    folder = stage_folder(root, ref)
    if found := seal.faults(folder):
        raise WorldError(f"{found[0]}; it is not used. Run the same command again, which makes it anew")
    return folder


def write(folder: Path, record: Any) -> None:
    """End a stage: seal its files, then write the record, whose digest the seal holds.

    Raises:
        RuntimeError: a file that the record names is not the one in the folder.
    """
    text = records.to_json(record)
    for path, expected, size in _files(json.loads(text)):
        file = folder / path
        if not file.is_file() or file.stat().st_size != size or seal.sha256(file) != expected:
            raise RuntimeError(f"the record of {folder} names {path}, which is not that file")
    seal.write(folder, {RECORD_FILE: text})
    records.write_text(folder / RECORD_FILE, text)


def finished(root: str | Path, stage: str, key: str) -> StageRef | None:
    """The stage's reference if its record is there and every file is what the seal says, else None."""
    record = folder_of(root, stage, key) / RECORD_FILE
    if not record.is_file() or not (record.parent / seal.SEAL).is_file() or changes(root, stage, key):
        return None
    return StageRef(stage, key, records.sha256_file(record))


def changes(root: str | Path, stage: str, key: str) -> list[seal.Fault]:
    """What was changed in a finished stage since. An attempt that a kill left has no record yet, and no fault by that."""
    folder = folder_of(root, stage, key)
    record, sealed = (folder / RECORD_FILE).is_file(), (folder / seal.SEAL).is_file()
    if record and not sealed:
        return [seal.Fault(folder / seal.SEAL, "is gone")]
    return [fault for fault in seal.faults(folder) if record or fault.path != folder / RECORD_FILE]


def set_aside(root: str | Path, stage: str, key: str) -> Path:
    """Move a changed stage to `runs/changed/`, where nothing looks for it but the person who wants to know."""
    place = Path(root) / CHANGED
    place.mkdir(parents=True, exist_ok=True)
    return folder_of(root, stage, key).rename(place / f"{stage}-{key}-{time.time_ns()}")


def view(root: str | Path, run_key: str, ref: StageRef, name: str) -> None:
    """Show a finished stage in the run's folder: `<name>.json` is a copy of its record; `stages.json` says where it was made."""
    run = Path(root) / run_key
    run.mkdir(parents=True, exist_ok=True)
    source = stage_folder(root, ref)
    records.write_text(run / f"{name}.json", (source / RECORD_FILE).read_text(encoding="utf-8"))
    known = run / STAGES_FILE
    try:
        stages = json.loads(known.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        stages = {}
    stages[name] = {"stage": ref.stage, "key": ref.key, "record": ref.digest, "seal": seal.digest(source)}
    records.write_text(known, json.dumps(stages, indent=2, sort_keys=True) + "\n")


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


def _files(value: Any) -> list[tuple[str, str, int]]:
    """Path, digest and size of every file that a record names."""
    if isinstance(value, dict):
        if set(value) == {"path", "sha256", "size"}:
            return [(value["path"], value["sha256"], value["size"])]
        return [found for item in value.values() for found in _files(item)]
    if isinstance(value, list):
        return [found for item in value for found in _files(item)]
    return []
