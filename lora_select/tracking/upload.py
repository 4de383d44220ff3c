"""Ships `metrics.jsonl`, which rank 0 writes, to MLflow: every step exactly once, whatever is killed or down.

The trainer never waits for MLflow; this runs beside it. The file is read again from its end on every call, so it may
grow, be cut back on a resume, or end in half a line.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select.records import write_text
from lora_select.tracking import names
from lora_select.tracking.entry_types import MAX_METRICS
from lora_select.tracking.store import Store, is_outage

STEPS_PER_BATCH = MAX_METRICS // len(names.TRAIN_STEP)
"""A step is never split over two batches: a batch is one transaction, so a step is there whole or not at all."""


@dataclass(frozen=True)
class Shipment:
    """One metrics file on its way to one run; `note` is `shipped.json`, which also tells a person how far it got."""

    store: Store
    run_id: str
    path: Path

    @property
    def note(self) -> Path:
        """The file beside the metrics that holds the last acknowledged step per run id."""
        return self.path.with_name("shipped.json")


def ship(shipment: Shipment, *, certain: bool = False) -> int:
    """Send every whole line whose step is newer than what the run has; return how many steps are still to be sent.

    Args:
        shipment: what to send where.
        certain: True when the last call in this process sent all it tried to, so the note is exact. False after a
            start or a failure: a batch may have arrived without its answer, therefore MLflow is asked what it has.

    Returns:
        0 when all is there; more when MLflow could not be reached (call again later, nothing is lost).

    Raises:
        mlflow.exceptions.MlflowException: MLflow refused for good, for instance because the run was deleted.
    """
    last = _noted(shipment)
    try:
        last = last if certain else _shipped_according_to_mlflow(shipment)
        waiting = newer(shipment.path, last)
        for start in range(0, len(waiting), STEPS_PER_BATCH):
            batch = waiting[start : start + STEPS_PER_BATCH]
            _send(shipment, batch)
            last = int(batch[-1]["step"])
            _note(shipment, last)
    except Exception as error:
        if not is_outage(error):
            raise
        return max(1, len(newer(shipment.path, last)))
    return 0


def newer(path: Path, last: int) -> list[dict[str, Any]]:
    """The steps after `last`, in order, each once; when a resume did a step again, the later line counts."""
    found: dict[int, dict[str, Any]] = {}
    for line in _lines_from_the_end(path):
        if line["step"] <= last:
            break
        found.setdefault(line["step"], line)
    return [found[step] for step in sorted(found)]


def _lines_from_the_end(path: Path) -> Iterator[dict[str, Any]]:
    """Whole, readable lines; the last one without a newline is still being written, a torn one was left by a kill."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in reversed(text.split("\n")[:-1]):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict) and isinstance(values.get("step"), int):
            yield values


def _shipped_according_to_mlflow(shipment: Shipment) -> int:
    history = shipment.store.client.get_metric_history(shipment.run_id, names.TRAIN_LOSS)
    return max((metric.step for metric in history), default=-1)


def _send(shipment: Shipment, batch: list[dict[str, Any]]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(key, float(step[name]), int(step["timestamp_ms"]), step["step"])
        for step in batch
        for name, key in names.TRAIN_STEP.items()
        if step.get(name) is not None
    ]
    shipment.store.client.log_batch(shipment.run_id, metrics=metrics)


def _noted(shipment: Shipment) -> int:
    try:
        return int(json.loads(shipment.note.read_text())[shipment.run_id])
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return -1


def _note(shipment: Shipment, step: int) -> None:
    try:
        noted = json.loads(shipment.note.read_text())
    except (FileNotFoundError, ValueError):
        noted = {}
    write_text(shipment.note, json.dumps({**noted, shipment.run_id: step}, sort_keys=True) + "\n")
