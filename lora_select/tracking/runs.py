"""Runs: one parent per flow run, one child per stage that did work, found again after a kill."""

import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path

from lora_select.tracking import logged_models, names
from lora_select.tracking.entry_types import DATASET_DIGEST, MAX_TAG, DatasetEntry, Entries
from lora_select.tracking.store import Store

log = logging.getLogger(__name__)
MAX_PER_BATCH = {"metrics": 1000, "params": 100, "tags": 100}


def find_or_create_parent(store: Store, run_key: str, *, name: str, tags: Mapping[str, str] | None = None) -> str:
    """The run id of this flow run's parent.

    A parent with the same `run_key` that still says RUNNING was killed: it is taken up again, so that one piece of work
    is one run. The oldest wins when there are several. A finished one is left alone and a new run made.
    """
    given = {names.RUN_KEY: run_key, names.KIND: names.PIPELINE, names.COMPARED: "true", **(tags or {})}
    pipeline = f"tags.`{names.RUN_KEY}` = '{run_key}' AND tags.`{names.KIND}` = '{names.PIPELINE}'"
    found = _find(store, f"{pipeline} AND attributes.status = 'RUNNING'")
    return _adopt(store, found, given) if found else _create(store, name, given)


def find_or_create_child(store: Store, parent: str, stage: str, token: str) -> str:
    """The run id of one stage's work below `parent`; the same `token` is the same run, also from another process."""
    found = _find(store, f"tags.`{names.TOKEN}` = '{token}'")
    tags = {names.PARENT_RUN_ID: parent, names.STAGE: stage, names.KIND: names.STAGE_RUN, names.TOKEN: token}
    return found or _create(store, stage, tags)


def finish(store: Store, run_id: str, status: str = "FINISHED", *, end_ms: int | None = None) -> None:
    """Close a run and what is still open below it: FINISHED, FAILED or KILLED; `end_ms` is when it really ended."""
    for child in store.client.search_runs(
        [store.experiment_id], f"tags.`{names.PARENT_RUN_ID}` = '{run_id}' AND attributes.status = 'RUNNING'"
    ):
        store.client.set_terminated(child.info.run_id, "KILLED" if status == "FINISHED" else status, end_time=end_ms)
    store.client.set_terminated(run_id, status, end_time=end_ms)


def apply(store: Store, run_id: str, entries: Entries) -> None:
    """Send entries to a run. Sending the same entries again changes nothing.

    Metrics carry the time at which they were made: MLflow keeps one row per (key, step, time, value). A parameter that
    exists with another value is immutable there; the new value goes to the tag `changed.<name>`.

    Raises:
        mlflow.exceptions.MlflowException, OSError: what was sent so far stays sent.
    """
    from mlflow.entities import Metric, RunTag

    client = store.client
    if entries.model:
        logged_models.made(store, run_id, entries.model)
    metrics = [Metric(key, value, entries.timestamp_ms, 0) for key, value in entries.metrics.items()]
    if entries.judged:
        metrics = logged_models.judged(store, run_id, entries.judged, metrics)
    for model in entries.checkpoints:
        metrics += logged_models.looked_at(store, run_id, model, entries.timestamp_ms)
    tags = [RunTag(key, value) for key, value in entries.tags.items()]
    for part in _batches(metrics, MAX_PER_BATCH["metrics"]):
        client.log_batch(run_id, metrics=part)
    for part in _batches(tags, MAX_PER_BATCH["tags"]):
        client.log_batch(run_id, tags=part)
    _params(store, run_id, entries.params)
    if entries.datasets:
        client.log_inputs(run_id, datasets=[_dataset_input(entry) for entry in entries.datasets])
    for place, text in entries.texts.items():
        client.log_text(run_id, text, place)
    for path, into in entries.files.items():
        _upload(store, run_id, path, into)


def _upload(store: Store, run_id: str, path: str, into: str) -> None:
    if Path(path).is_dir():
        store.client.log_artifacts(run_id, path, into)
    elif Path(path).exists():
        store.client.log_artifact(run_id, path, into)
    else:
        log.warning("%s is gone, it is missing among the artifacts of run %s", path, run_id)


def _params(store: Store, run_id: str, params: Mapping[str, str]) -> None:
    from mlflow.entities import Param, RunTag

    if not params:
        return
    known = store.client.get_run(run_id).data.params
    new = [Param(key, value) for key, value in params.items() if key not in known]
    changed = [RunTag(f"changed.{k}", v[:MAX_TAG]) for k, v in params.items() if known.get(k, v) != v]
    for part in _batches(new, MAX_PER_BATCH["params"]):
        store.client.log_batch(run_id, params=part)
    for part in _batches(changed, MAX_PER_BATCH["tags"]):
        store.client.log_batch(run_id, tags=part)


def _dataset_input(entry: DatasetEntry):
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=entry.name[:500],
        digest=entry.digest[:DATASET_DIGEST],
        source_type="local",
        source=json.dumps({"uri": entry.source}),
        schema=logged_models.schema(entry.columns) if entry.columns else None,
        profile=json.dumps({"num_rows": entry.rows, **entry.profile, "sha256": entry.digest}),
    )
    return DatasetInput(dataset, [InputTag("mlflow.data.context", entry.context)])


def _find(store: Store, wanted: str) -> str | None:
    order = ["attributes.start_time ASC"]
    found = store.client.search_runs([store.experiment_id], wanted, max_results=1, order_by=order)
    return found[0].info.run_id if found else None


def _adopt(store: Store, run_id: str, tags: Mapping[str, str]) -> str:
    from mlflow.entities import RunTag

    store.client.log_batch(run_id, tags=[RunTag(key, value) for key, value in tags.items()])
    return run_id


def _create(store: Store, name: str, tags: Mapping[str, str]) -> str:
    run = store.client.create_run(
        store.experiment_id, start_time=int(time.time() * 1000), tags=dict(tags), run_name=name
    )
    return run.info.run_id


def _batches(items: list, size: int) -> list[list]:
    return [items[start : start + size] for start in range(0, len(items), size)]
