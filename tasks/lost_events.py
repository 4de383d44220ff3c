"""Registrations that no run was started for, by the ledger and by what Prefect's server knows of its runs."""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
from prefect.client.schemas.objects import StateType

from lora_select.audit.registrations import Registration, pending
from lora_select.config import RunConfig
from lora_select.data.events import emit_registered

DEPLOYMENT = "on-dataset"
PAGE = 200


def send_lost(config: RunConfig) -> list[str]:
    """Send the events of registrations that no flow run was started for; return a line for each.

    One that waits, runs, or ended badly is left alone: a person is told of the last. One that died with its worker is begun anew.

    Raises:
        WorldError: the server does not take an event.
    """
    lost = unstarted(pending(Path(config.runs_dir)), _parameters())
    lines = []
    for item in lost:
        sent = emit_registered(item.path, item.digest, os.environ.get("PREFECT_API_URL"))
        lines.append(f"entry {item.sequence}: {item.path} ({item.digest[:12]}): {sent}")
        print(lines[-1], flush=True)
    if not lines:
        print("a run was started for every registered dataset", flush=True)
    return lines


def unstarted(registrations: Iterable[Registration], parameters: Iterable[dict[str, Any]]) -> list[Registration]:
    """Those whose digest is in the overrides of no flow run.

    >>> known = [{"overrides": ['dataset.registered="ab"']}]
    >>> [one.digest for one in unstarted([Registration("a", "ab", "", 1), Registration("b", "cd", "", 2)], known)]
    ['cd']
    """
    started = " ".join(str(told.get("overrides")) for told in parameters)
    return [item for item in registrations if item.digest not in started]


def _parameters() -> list[dict[str, Any]]:
    """The parameters of every run that an event started, but those that crashed."""
    found: list[dict[str, Any]] = []
    chosen = DeploymentFilter(name=DeploymentFilterName(any_=[DEPLOYMENT]))
    with get_client(sync_client=True) as client:
        while True:
            page = client.read_flow_runs(deployment_filter=chosen, limit=PAGE, offset=len(found))
            found += [{} if run.state_type == StateType.CRASHED else run.parameters for run in page]
            if len(page) < PAGE:
                return found
