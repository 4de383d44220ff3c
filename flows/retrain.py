"""Retraining on a schedule: nothing when dataset, base model, config and library are unchanged, and it says so."""

import sys

from prefect import State, flow

from flows.arguments import run_from_command_line
from flows.finetune import walked_unless_over
from lora_select.config import load


@flow(name="retrain", flow_run_name="{config}")
def retrain(config: str, overrides: list[str] | None = None) -> State[str]:
    """Walk the line unless its run is over.

    Args:
        config: a YAML file (see `lora_select.config.RunConfig`).
        overrides: any field as `section.field=value`.
    """
    return walked_unless_over(load(config, overrides or []))


if __name__ == "__main__":
    sys.exit(run_from_command_line(retrain, __doc__ or "", may_dry_run=False))
