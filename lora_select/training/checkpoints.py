"""Checkpoints: whole or not there. A manifest of digests is written last and checked before use."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from lora_select.records import sha256_file, write_text

MANIFEST = "MANIFEST.json"


def save(engine: Any, folder: Path, step: int, keep: int, world_size: int) -> None:
    """Save adapter and optimizer after `step` optimizer steps; called by every rank.

    DeepSpeed writes into a temporary folder; rank 0 adds the manifest and renames, then removes all but `keep`.
    """
    import torch.distributed

    temporary = folder / f".writing-{step}"
    if engine.global_rank == 0:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
    torch.distributed.barrier()
    engine.save_checkpoint(str(temporary), tag=name(step), exclude_frozen_parameters=True, save_latest=False)
    torch.distributed.barrier()
    if engine.global_rank == 0:
        _seal(temporary / name(step), step, world_size)
        final = folder / name(step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary / name(step), final)
        shutil.rmtree(temporary, ignore_errors=True)
        for old in found(folder)[:-keep]:
            shutil.rmtree(folder / name(old))
    torch.distributed.barrier()


def newest(folder: Path, world_size: int) -> tuple[int, list[str]]:
    """The step of the newest checkpoint that verifies (0: none), and a sentence for each that does not."""
    faults = []
    for step in reversed(found(folder)):
        fault = verify(folder / name(step), world_size)
        if fault is None:
            return step, faults
        faults.append(f"checkpoint {name(step)} is not used: {fault}")
    return 0, faults


def load(engine: Any, folder: Path, step: int) -> None:
    """Load a verified checkpoint into the engine; called by every rank.

    Raises:
        RuntimeError: DeepSpeed does not take it.
    """
    loaded, _ = engine.load_checkpoint(str(folder), tag=name(step), load_module_strict=False)
    if loaded is None:
        raise RuntimeError(f"DeepSpeed could not load {folder / name(step)}; remove it to resume from the one before")


def name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:07d}"


def found(folder: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.is_dir())


def verify(folder: Path, world_size: int) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it has no readable manifest"
    if manifest["world_size"] != world_size:
        return f"it was written by {manifest['world_size']} ranks, this run has {world_size}"
    for file, digest in manifest["files"].items():
        path = folder / file
        if not path.is_file() or sha256_file(path) != digest:
            return f"{file} is missing or was changed"
    return None


def _seal(folder: Path, step: int, world_size: int) -> None:
    files = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    manifest = {"step": step, "world_size": world_size, "files": files}
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2, sort_keys=True) + "\n")
