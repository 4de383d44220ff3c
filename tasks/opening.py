"""A run of the line under Prefect: its runner, its observers, and the flow run's id in MLflow."""

from contextlib import AbstractContextManager

from prefect.runtime import flow_run

from lora_select.config import RunConfig
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
