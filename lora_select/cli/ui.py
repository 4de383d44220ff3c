"""`lora-select ui`: MLflow's pages for the local store."""

import argparse

from lora_select.address import default_uri


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    ui = commands.add_parser("ui", help="serve MLflow's pages for the local store")
    ui.add_argument("--tracking-uri", default=default_uri(), help="default: MLFLOW_TRACKING_URI, else a file here")
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)


def _ui(parsed: argparse.Namespace) -> int:
    from lora_select.tracking.store import serve

    return serve(parsed.tracking_uri, parsed.port)
