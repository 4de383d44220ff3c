"""Taking up a killed run: the newest whole checkpoint, and the metrics up to it."""

import json
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.training import job
from lora_select.training.worker import checkpoints
from lora_select.training.worker.process import Process


def find(rank: Process) -> int:
    """The newest whole checkpoint as rank 0 sees it, in finished steps (0: none); the same answer on every rank."""
    step = 0
    if rank.is_first:
        step, faults = checkpoints.newest(rank.folder / job.CHECKPOINTS)
        for fault in faults:
            print(fault, flush=True)
        print(f"rank 0 of {rank.world}: begins after step {step}", flush=True)
    return _from_first_rank(step, rank.device)


def cut_metrics(rank: Process, step: int) -> None:
    """Take up the counts up to `step` and cut off the metrics after it; rank 0 alone."""
    if not rank.is_first:
        return
    kept = metrics_until(rank.folder / job.METRICS, step)
    rank.tokens = sum(line["tokens"] for line in kept)
    rank.label_tokens = sum(line.get("label_tokens", 0) for line in kept)
    notes = rank.folder / "resumed.json"
    rank.resumed = json.loads(notes.read_text()) if notes.is_file() else []
    if step:
        rank.resumed.append(step)
    records.write_text(notes, json.dumps(rank.resumed))
    records.write_text(rank.folder / job.METRICS, "".join(json.dumps(line) + "\n" for line in kept))


def metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    """The lines of a metrics file up to and with `step`."""
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a kill tore the last line; its step is done again
        if values["step"] <= step:
            kept.append(values)
    return kept


def _from_first_rank(value: int, device: str) -> int:
    """Folders that nodes share may look older on one of them; all ranks must begin at one step."""
    import torch
    import torch.distributed

    tensor = torch.tensor(value, dtype=torch.int64, device=device)
    torch.distributed.broadcast(tensor, src=0)
    return int(tensor)
