"""Checkpoints: whole or not there, for any number of ranks and any ZeRO stage.

Rank 0 writes `parameters.safetensors` (trained tensors, whole, by name), `optimizer.safetensors` (see
:mod:`lora_select.training.worker.optimizer_state`) and last a manifest of digests, which is checked before use. Nothing else is needed: rows,
rate and random numbers of a step are pure functions of the seed and the step.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select.records import sha256_file, write_text
from lora_select.training.worker import optimizer_state

MANIFEST = "MANIFEST.json"
PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
GROUPS = "groups"


def save(engine: Any, stage: int, folder: Path, step: int, keep: int) -> None:
    """Save the trained parameters and the optimizer after `step` optimizer steps; called by every rank.

    Raises:
        OSError: the disk is full; nothing half-written stays, older checkpoints are untouched.
    """
    import torch.distributed

    parameters = whole_parameters(engine, stage)
    optimizer, groups = optimizer_state.gather(engine, stage)
    if engine.global_rank == 0:
        _write(folder, step, {PARAMETERS: (parameters, ""), OPTIMIZER: (optimizer, groups)})
        for old in found(folder)[:-keep]:
            shutil.rmtree(folder / name(old))
    torch.distributed.barrier()


def save_parameters(engine: Any, stage: int, folder: Path, step: int, keep: int) -> None:
    """Save the trained parameters alone after `step` steps, the newest `keep` of them; called by every rank."""
    import torch.distributed

    parameters = whole_parameters(engine, stage)
    if engine.global_rank == 0:
        _write(folder, step, {PARAMETERS: (parameters, "")})
        for old in found(folder)[:-keep]:
            shutil.rmtree(folder / name(old))
    torch.distributed.barrier()


def restore_parameters(engine: Any, stage: int, folder: Path, step: int) -> None:
    """Put saved parameters back into the engine's model, whether ZeRO-3 has split it or not; called by every rank.

    Raises:
        RuntimeError: the file was changed since it was saved.
    """
    import contextlib

    import deepspeed
    import torch
    from safetensors.torch import load_file

    if fault := verify(folder / name(step)):
        raise RuntimeError(f"the best parameters {folder / name(step)} cannot be used: {fault}")
    saved = load_file(folder / name(step) / PARAMETERS)
    named = [(key, p) for key, p in engine.module.named_parameters() if p.requires_grad]
    split = stage == 3
    parts = [p for _, p in named]
    gathered = deepspeed.zero.GatheredParameters(parts, modifier_rank=0) if split else contextlib.nullcontext()
    with gathered, torch.no_grad():
        for key, parameter in named:
            parameter.copy_(saved[key])


def whole_parameters(engine: Any, stage: int) -> dict[str, Any]:
    """Trained parameters by name in fp32 on the CPU, put together when ZeRO-3 has split them; called by every rank."""
    import contextlib

    import deepspeed

    named = [(name, p) for name, p in engine.module.named_parameters() if p.requires_grad]
    split = stage == 3
    gathered = deepspeed.zero.GatheredParameters([p for _, p in named]) if split else contextlib.nullcontext()
    with gathered:
        return {name: p.detach().float().cpu().clone().contiguous() for name, p in named}


def newest(folder: Path) -> tuple[int, list[str]]:
    """The step of the newest checkpoint that verifies (0: none), and a sentence for each that does not."""
    faults = []
    for step in reversed(found(folder)):
        fault = verify(folder / name(step))
        if fault is None:
            return step, faults
        faults.append(f"checkpoint {name(step)} is not used: {fault}")
    return 0, faults


def load_parameters(network: Any, folder: Path, step: int) -> None:
    """Load the trained parameters into a model that DeepSpeed has not yet taken, after its optimizer froze what it freezes.

    Raises:
        RuntimeError: the model has other trained parameters than the checkpoint.
    """
    import torch
    from safetensors.torch import load_file

    saved = load_file(folder / name(step) / PARAMETERS)
    trained = {key: p for key, p in network.named_parameters() if p.requires_grad}
    if saved.keys() != trained.keys():
        odd = sorted(saved.keys() ^ trained.keys())[:3]
        raise RuntimeError(f"{folder / name(step)} is of another adapter ({', '.join(odd)}); remove it to train anew")
    with torch.no_grad():
        for key, parameter in trained.items():
            parameter.copy_(saved[key])


def load_optimizer(engine: Any, stage: int, folder: Path, step: int) -> None:
    """Load the optimizer's state into an engine that has made no step; called by every rank."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = folder / name(step) / OPTIMIZER
    with safe_open(path, "pt") as file:
        groups = file.metadata()[GROUPS]
    optimizer_state.restore(engine, stage, load_file(path), groups)


def discard_after(folder: Path, step: int) -> None:
    """Remove the checkpoints of later steps."""
    for later in found(folder):
        if later > step:
            shutil.rmtree(folder / name(later))


def keep_newest(folder: Path) -> int:
    """Free disk: keep only the newest checkpoint that verifies; returns its step (0: none was good)."""
    good, _ = newest(folder)
    for step in found(folder):
        if step != good:
            shutil.rmtree(folder / name(step))
    return good


def name(step: int) -> str:
    """The folder of a step's checkpoint."""
    return f"step-{step:07d}"


def found(folder: Path) -> list[int]:
    """Steps that have a checkpoint folder, ascending."""
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("step-*") if path.is_dir())


def verify(folder: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return "it has no readable manifest"
    for file, digest in manifest["files"].items():
        path = folder / file
        if not path.is_file() or sha256_file(path) != digest:
            return f"{file} is missing or was changed"
    return None


def _write(folder: Path, step: int, files: Mapping[str, tuple[Mapping[str, Any], str]]) -> None:
    """All files in a temporary folder, on disk before the rename that makes them a checkpoint."""
    from safetensors.torch import save_file

    temporary, final = folder / f".writing-{step}", folder / name(step)
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        temporary.mkdir(parents=True)
        for file, (tensors, groups) in files.items():
            save_file(dict(tensors), temporary / file, metadata={GROUPS: groups})
            _sync(temporary / file)
        _seal(temporary, step)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(temporary, final)
        _sync(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _seal(folder: Path, step: int) -> None:
    files = {p.relative_to(folder).as_posix(): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}
    write_text(folder / MANIFEST, json.dumps({"step": step, "files": files}, indent=2, sort_keys=True) + "\n")


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
