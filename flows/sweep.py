"""Registered datasets whose event was lost are found in the ledger, and their events sent again; a run that died is begun anew."""

from prefect import flow

from lora_select.config import load
from tasks.lost_events import send_lost


@flow(name="sweep", flow_run_name="sweep {config}")
def sweep(config: str, overrides: list[str] | None = None) -> list[str]:
    """Send the event of every registration in the ledger of the config's `runs_dir` that no run was started for; say which.

    Args:
        config: a YAML file (see `lora_select.config.RunConfig`).
        overrides: any field as `section.field=value`.
    """
    return send_lost(load(config, overrides or []))
