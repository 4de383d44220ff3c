"""Retraining on a schedule: nothing when dataset, base model, config and library are unchanged, and it says so."""

import sys
from pathlib import Path

from prefect import State, flow, get_run_logger
from prefect.states import Completed

from flows.command import run_from_command_line
from flows.finetune import finetune
from lora_select import models
from lora_select.config import load
from lora_select.pipeline import sources
from lora_select.pipeline.history import is_over
from lora_select.pipeline.run import run_key


@flow(name="retrain", flow_run_name="{config}")
def retrain(config: str, overrides: list[str] | None = None) -> State | str:
    """Run `finetune` unless its run is over; one whose promotion is deferred or whose request for approval expired is gone on with.

    Args:
        config: a YAML file (see `lora_select.config.RunConfig`).
        overrides: any field as `section.field=value`.
    """
    loaded = load(config, overrides or [])
    base = models.resolve(loaded.base_model.source, loaded.base_model.revision)
    folder = Path(loaded.runs_dir) / run_key(loaded, base, sources.digests(loaded))
    if is_over(folder, tracked=loaded.tracking.uri is not None):
        message = f"dataset, base model, config and library are unchanged since {folder}; nothing to do"
        print(message, flush=True)
        get_run_logger().info("%s", message)
        return Completed(name="Unchanged", message=message)
    return finetune(config, overrides)


if __name__ == "__main__":
    sys.exit(run_from_command_line(retrain, __doc__ or "", may_dry_run=False))
