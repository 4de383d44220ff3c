"""What one record becomes in MLflow, as plain data: pure functions, no client, no network.

`of(record, folder)` is the only door. Parameters and tags that MLflow would cut are shortened here and kept whole as a
file, so nothing is lost without a trace.
"""

import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.tracking import names, record_entries
from lora_select.tracking.entry_types import KEPT, MAX_PARAM, MAX_TAG, DatasetEntry, Entries
from lora_select.tracking.logged_models import ModelEntry, checkpoints


def of(record: Any, folder: Path | None = None, *, stage: str | None = None) -> Entries:
    """What `record` adds to its run: its own entries and its JSON as `records/<stage>.json`.

    Args:
        record: one of `lora_select.records`.
        folder: the stage's folder, for records that name files to upload (Adapter, Report, Evaluation, Dataset).
        stage: label of the stage; by default the one of `names.LABELS`.

    Raises:
        TypeError: a type that no function here knows.
    """
    maker = record_entries.MAKERS.get(type(record))
    if maker is None:
        raise TypeError(
            f"no MLflow entries are defined for {type(record).__name__}; add a function to tracking.record_entries"
        )
    made = maker(record)
    texts = {**made.texts, f"records/{stage or names.LABELS[type(record).__name__]}.json": records.to_json(record)}
    files = {str((folder / path).resolve()): into for path, into in made.files.items()} if folder else {}
    if isinstance(record, records.Adapter) and folder:
        params = made.model.params if made.model else {}
        made = dataclasses.replace(made, checkpoints=checkpoints(record, folder.resolve(), params))
    return fit(dataclasses.replace(made, texts=texts, files=files, timestamp_ms=int(time.time() * 1000)))


def from_plain(content: Mapping[str, Any]) -> Entries:
    """Undo `dataclasses.asdict`, for entries that waited as JSON."""
    datasets = tuple(DatasetEntry(**dataset) for dataset in content["datasets"])
    model = ModelEntry(**content["model"]) if content.get("model") else None
    kept = tuple(ModelEntry(**one) for one in content.get("checkpoints", ()))
    return Entries(**{**content, "datasets": datasets, "model": model, "checkpoints": kept})


def fit(entries: Entries) -> Entries:
    """Shorten what MLflow would cut, with the whole value in `long/<name>.txt`; drop metrics that are no numbers."""
    texts = dict(entries.texts)
    params = {names.key(k): _short(k, v, MAX_PARAM, texts) for k, v in entries.params.items()}
    tags = {names.key(k): _short(k, v, MAX_TAG, texts) for k, v in entries.tags.items()}
    metrics = {names.key(k): float(v) for k, v in entries.metrics.items()}
    return dataclasses.replace(entries, params=params, metrics=metrics, tags=tags, texts=texts)


def rival(record: records.Evaluation, other: str) -> Entries:
    """What the evaluation says about another adapter, under the same metric names as a run of its own would have.

    In `against[other]` the other adapter is `base`; its difference and interval to the base model were not measured.
    """
    metrics = {}
    for metric, pair in record.against[other].items():
        metrics[names.evaluation(metric, "adapted")] = pair.base
        metrics[names.evaluation(metric, "rows")] = float(pair.rows)
        if metric in record.metrics:
            metrics[names.evaluation(metric, "base")] = record.metrics[metric].base
    return Entries(metrics=metrics, timestamp_ms=int(time.time() * 1000))


def rival_run(record: records.Adapter) -> Entries:
    """What makes the run of a rival adapter a row of the comparison view."""
    return Entries(
        params=record_entries.spec(record.spec), tags={names.COMPARED: "true"}, timestamp_ms=int(time.time() * 1000)
    )


def _short(name: str, value: Any, limit: int, texts: dict[str, str]) -> str:
    text = str(value)
    if len(text) <= limit:
        return text
    place = f"long/{names.key(name)}.txt"
    texts[place] = text
    return f"{text[:KEPT]}… ({len(text)} characters, whole value in artifact {place})"
