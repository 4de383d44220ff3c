"""Telling Prefect that a dataset is there: one HTTP event, so that the library needs no orchestrator."""

import base64
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from lora_select.address import masked
from lora_select.errors import WorldError

EVENT = "dataset.registered"


def emit_registered(path: str, digest: str, api_url: str | None) -> str:
    """Send `dataset.registered` to a Prefect server and say what happened.

    Args:
        path: absolute, of what was registered.
        digest: of its bytes.
        api_url: `PREFECT_API_URL`; None: no server is configured.

    Raises:
        WorldError: a server is configured but does not take the event (its HTTP status is named); the registration itself stands.
    """
    if not api_url:
        return "no Prefect server is configured (PREFECT_API_URL); no event was sent, start the flow by hand"
    import requests

    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"dataset.{digest[:32]}",
            "prefect.resource.name": Path(path).stem,
        },
        "payload": {"path": path, "sha256": digest},
    }
    try:
        answer = requests.post(f"{api_url.rstrip('/')}/events", json=[event], headers=authorization(), timeout=10)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise WorldError(
            f"the Prefect server at {masked(api_url)} did not take the event ({_reason(error)}); the dataset is registered, run the "
            "command again with --again once the server answers"
        ) from error
    return f"event {EVENT} sent to {masked(api_url)}"


def authorization(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The header of Prefect's own settings: `PREFECT_API_AUTH_STRING` (name:password) or `PREFECT_API_KEY`; empty where neither is set.

    >>> authorization({"PREFECT_API_AUTH_STRING": "admin:pass"})
    {'Authorization': 'Basic YWRtaW46cGFzcw=='}
    """
    known = os.environ if environment is None else environment
    if login := known.get("PREFECT_API_AUTH_STRING"):
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}
    if key := known.get("PREFECT_API_KEY"):
        return {"Authorization": f"Bearer {key}"}
    return {}


def _reason(error: Exception) -> str:
    answer = getattr(error, "response", None)
    if answer is None:
        return type(error).__name__
    login = "; set PREFECT_API_AUTH_STRING" if answer.status_code in (401, 403) else ""
    return f"HTTP {answer.status_code} {answer.reason}{login}"
