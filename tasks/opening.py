"""A run of the line under Prefect: its dataset where an event began it, its runner, its observers, the flow run's id in MLflow."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from prefect.runtime import flow_run

from lora_select.audit.registrations import take
from lora_select.config import RunConfig, load
from lora_select.pipeline import run
from lora_select.pipeline.observers import Terminal
from lora_select.pipeline.run import Run
from lora_select.tracking import names
from tasks.pages import Log, Pages
from tasks.runner import as_task


def opened(config: RunConfig) -> AbstractContextManager[Run]:
    """As :func:`lora_select.pipeline.run.opened`: each stage is a Prefect task, and Prefect's pages show the answer."""
    return run.opened(
        config,
        runner=as_task,
        observers=(Terminal(), Log(), Pages()),
        tags={names.FLOW_RUN_ID: str(flow_run.id or "")},
    )


def next_in_line(config: RunConfig, file: str, overrides: Sequence[str]) -> RunConfig:
    """The config of a flow run that an event began: of the registered dataset that has waited longest, with the config of its own.

    Prefect does not keep the order of the runs that wait, and the ledger does. Where no dataset waits, the run keeps the one that its
    event names.

    Args:
        config: of the deployment, with the event's overrides.
        file: the deployment's, for a registration that names none.
        overrides: of the flow run.

    Raises:
        InputError: the event names what was never registered, or the registration's config cannot be used.
    """
    named = config.dataset
    found = take(Path(config.runs_dir), str(flow_run.id), named.source, str(named.registered))
    print(f"works on entry {found.sequence} of the ledger: {found.path}", flush=True)
    more = [f"dataset.source={json.dumps(found.path)}", f"dataset.registered={json.dumps(found.digest)}"]
    return load(found.config or file, [*overrides, f"runs_dir={json.dumps(config.runs_dir)}", *more])
