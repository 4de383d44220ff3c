"""Telling Prefect that a dataset is there: one HTTP event, so that the library needs no orchestrator."""

import uuid
from datetime import UTC, datetime

from lora_select.data.register import DatasetManifest
from lora_select.errors import WorldError

EVENT = "dataset.registered"


def emit_registered(manifest: DatasetManifest, api_url: str | None) -> str:
    """Send `dataset.registered` to a Prefect server and say what happened.

    Raises:
        WorldError: a server is configured but does not take the event; the registration itself stands.
    """
    if not api_url:
        return "no Prefect server is configured (PREFECT_API_URL); no event was sent, start the flow by hand"
    import requests

    event = {
        "id": str(uuid.uuid4()),
        "occurred": datetime.now(UTC).isoformat(),
        "event": EVENT,
        "resource": {
            "prefect.resource.id": f"dataset.{manifest.digest[:32]}",
            "prefect.resource.name": manifest.name,
        },
        "payload": {"path": manifest.path, "sha256": manifest.digest},
    }
    try:
        answer = requests.post(f"{api_url.rstrip('/')}/events", json=[event], timeout=10)
        answer.raise_for_status()
    except requests.RequestException as error:
        raise WorldError(
            f"the Prefect server at {api_url} did not take the event ({type(error).__name__}); the dataset is registered, "
            "run the command again once the server answers"
        ) from error
    return f"event {EVENT} sent to {api_url}"
