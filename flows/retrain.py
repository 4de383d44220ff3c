"""Retraining on a schedule: nothing when dataset, base model, config and library are unchanged, and it says so."""

import sys

from prefect import State, flow, get_run_logger
from prefect.runtime import flow_run

from flows.arguments import run_from_command_line
from flows.finetune import walked
from lora_select.config import load
from lora_select.pipeline.history import is_over
from lora_select.pipeline.run import folder_of
from tasks.outcome import unchanged


@flow(name="retrain", flow_run_name="{config}")
def retrain(config: str, overrides: list[str] | None = None) -> State[str]:
    """Walk the line unless its run is over; one whose promotion is deferred, answered or no longer asked is gone on with.

    Args:
        config: a YAML file (see `lora_select.config.RunConfig`).
        overrides: any field as `section.field=value`.
    """
    loaded = load(config, overrides or [])
    folder = folder_of(loaded)
    resumed = flow_run.run_count > 1  # there is an answer to enter
    if not resumed and is_over(folder, tracked=loaded.tracking.uri is not None):
        state = unchanged(str(folder))
        print(state.message, flush=True)
        get_run_logger().info("%s", state.message)
        return state
    return walked(loaded)


if __name__ == "__main__":
    sys.exit(run_from_command_line(retrain, __doc__ or "", may_dry_run=False))
