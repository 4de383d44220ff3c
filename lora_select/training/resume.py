"""Taking up a killed run: the newest whole checkpoint, and the metrics up to it."""

import json
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.training import checkpoints, job
from lora_select.training.rank import Rank


def take_up(rank: Rank) -> int:
    """Take up the newest whole checkpoint; returns the number of finished steps. Metrics after it are cut off."""
    folder = rank.folder / job.CHECKPOINTS
    step, faults = checkpoints.newest(folder, rank.world)
    if rank.is_first:
        for fault in faults:
            print(fault, flush=True)
    if step:
        checkpoints.load(rank.engine, folder, step)
    kept = metrics_until(rank.folder / job.METRICS, step)
    rank.tokens = sum(line["tokens"] for line in kept)
    rank.label_tokens = sum(line.get("label_tokens", 0) for line in kept)
    notes = rank.folder / "resumed.json"
    rank.resumed = json.loads(notes.read_text()) if notes.is_file() else []
    if step:
        rank.resumed.append(step)
    if rank.is_first:
        records.write_text(notes, json.dumps(rank.resumed))
        records.write_text(rank.folder / job.METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        print(f"rank 0 of {rank.world}: begins after step {step}", flush=True)
    return step


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
