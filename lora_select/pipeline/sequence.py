"""Tasks one after the other: what became of every earlier one, on the rows that its own run kept for evaluation.

A model that adapters were merged into names the tasks and the digests of their evaluation rows, and holds none of them; the rows are looked for
among the runs that this place holds.
"""

import gc
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.data.labels.tokens import TokenRow, read_rows
from lora_select.pipeline.run import Run
from lora_select.pipeline.stage import Context, Outcome, Stage
from lora_select.pipeline.stages import prepare
from lora_select.pipeline.workspace import RECORD_FILE, StageRef
from lora_select.records import Adapter, BaseModel, DatasetProfile, TaskOverTime, TasksOverTime
from lora_select.records.retention import TASKS_IN_BASE

ROWS = 64
"""Evaluation rows of each task that are read."""
BATCH = 16


def over_time(
    run: Run, profile: Outcome[DatasetProfile], adapter: Outcome[Adapter], served: Outcome[Adapter]
) -> Outcome[TasksOverTime] | None:
    """The losses of this task and of all earlier ones; None where neither this run nor its base is part of a sequence."""
    file = Path(run.base.path) / TASKS_IN_BASE
    if not run.config.retention.keep_moments and not file.is_file():
        return None
    return run.do(
        tasks,
        "tasks",
        profile=profile.ref,
        adapter=adapter.ref,
        served=served.ref,
        base=run.base,
        name=run.config.name,
        device=run.machine.device,
        quantize=run.config.base_model.quantize,
        key_only={"earlier": records.sha256_file(file) if file.is_file() else None},
    )


def _tasks(
    context: Context,
    *,
    profile: StageRef,
    adapter: StageRef,
    served: StageRef,
    base: BaseModel,
    name: str,
    device: str,
    quantize: str | None,
) -> TasksOverTime:
    file = Path(base.path) / TASKS_IN_BASE
    earlier = records.read(TasksOverTime, file) if file.is_file() else TasksOverTime((), ())
    own = context.load(profile, DatasetProfile).eval_tokens_file
    rows = {own.sha256: read_rows(context.folder_of(profile) / own.path)[:ROWS]}
    rows |= {task.rows_sha256: found for task in earlier.tasks if (found := _kept_rows(context, task)) is not None}
    folders = {context.folder_of(ref) / context.load(ref, Adapter).directory for ref in (adapter, served)}
    now = {folder: _losses(base, folder, rows, device, quantize) for folder in (None, *folders)}
    last = now[context.folder_of(served) / context.load(served, Adapter).directory]
    raw = now[context.folder_of(adapter) / context.load(adapter, Adapter).directory]
    made = [
        TaskOverTime(
            task.name,
            task.rows_sha256,
            task.rows,
            (*task.losses, last.get(task.rows_sha256)),
            raw.get(task.rows_sha256),
        )
        for task in earlier.tasks
    ]
    if own.sha256 not in {task.rows_sha256 for task in earlier.tasks}:
        losses = (*[None] * len(earlier.trainings), now[None][own.sha256], last[own.sha256])
        made.append(TaskOverTime(name, own.sha256, len(rows[own.sha256]), losses, raw[own.sha256]))
    return TasksOverTime((*earlier.trainings, name), tuple(made))


def _kept_rows(context: Context, task: TaskOverTime) -> Sequence[TokenRow] | None:
    """The rows of an earlier task, where a run that profiled them is still in this place."""
    for record in sorted((Path(context.place.root) / "stages" / prepare.profile.name).glob(f"*/{RECORD_FILE}")):
        if task.rows_sha256 not in record.read_text(encoding="utf-8"):
            continue
        file = record.parent / records.read(DatasetProfile, record).eval_tokens_file.path
        if file.is_file() and records.sha256_file(file) == task.rows_sha256:
            return read_rows(file)[: task.rows]
    return None


def _losses(
    base: BaseModel, adapter: Path | None, rows: dict[str, Sequence[TokenRow]], device: str, quantize: str | None
) -> dict[str, float]:
    """Mean loss of each set of rows in nats per label token, with an adapter or without."""
    from lora_select import models
    from lora_select.evaluation.model_losses import label_counts, row_losses

    model: Any = models.load_model(base.path, device=device, quantize=quantize)
    if adapter is not None:
        model = models.with_adapter(model, adapter)
    pad_id = models.pad_id(models.load_tokenizer(base.path))
    found = {
        name: math.fsum(row_losses(model, part, pad_id, BATCH, device)) / sum(label_counts(part))
        for name, part in rows.items()
    }
    del model
    gc.collect()
    return found


tasks = Stage("tasks", TasksOverTime, _tasks)
