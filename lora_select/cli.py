"""`lora-select`: ask, look back, recompute. Heavy imports happen inside the commands, so that `--help` is instant."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_select import __version__
from lora_select.errors import InputError, WorldError

DEFAULT_TRACKING = "sqlite:///mlflow.db"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 well, 1 a check said no or the world failed, 2 bad input."""
    parsed = _parser().parse_args(arguments)
    try:
        return parsed.run(parsed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except WorldError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lora-select", description=__doc__)
    parser.add_argument("--version", action="version", version=f"lora-select {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    doctor = commands.add_parser("doctor", help="what is installed, device, stores, disk; each fault with its remedy")
    doctor.add_argument("--tracking-uri", default=os.environ.get("MLFLOW_TRACKING_URI", DEFAULT_TRACKING))
    doctor.set_defaults(run=_doctor)

    data = commands.add_parser("data", help="datasets").add_subparsers(required=True, metavar="ACTION")
    register = data.add_parser("register", help="note a dataset and tell Prefect, which starts finetune/on-dataset")
    register.add_argument("path")
    register.add_argument("--ledger", default="runs/datasets.jsonl", help="where registrations are kept")
    register.set_defaults(run=_register)

    for name, function, text in (
        ("explain", _explain, "the decision of a run, in words"),
        ("replay", _replay, "recompute the decision from its recorded evidence; exit 1 when it differs"),
    ):
        command = commands.add_parser(name, help=text)
        command.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest")
        command.set_defaults(run=function)

    compare = commands.add_parser("compare", help="runs side by side, and a link to MLflow's comparison view")
    compare.add_argument("run_folders", metavar="RUN", nargs="+")
    compare.set_defaults(run=_compare)

    number = os.environ.get("SLURM_NODEID") or os.environ.get("JOB_COMPLETION_INDEX")
    node = commands.add_parser("node", help="join the training runs of a flow on another node")
    node.add_argument("runs_dir", metavar="RUNS", help="the flow's `runs_dir`, on a file system that the nodes share")
    node.add_argument(
        "--number", type=int, default=number, required=number is None, help="1 for the second node, 2, ..."
    )
    node.set_defaults(run=_node)

    ui = commands.add_parser("ui", help="serve MLflow's pages for the local store")
    ui.add_argument("--tracking-uri", default=DEFAULT_TRACKING)
    ui.add_argument("--port", type=int, default=5000)
    ui.set_defaults(run=_ui)
    return parser


def _doctor(parsed: argparse.Namespace) -> int:
    from lora_select.doctor import examine

    findings = examine(parsed.tracking_uri, Path.cwd())
    for finding in findings:
        print(f"{'ok ' if finding.ok else 'BAD'}  {finding.name:22} {finding.found}")
        if not finding.ok:
            print(f"     {'':22} -> {finding.remedy}")
    faults = sum(not finding.ok for finding in findings)
    print(
        "everything is in order" if not faults else f"{faults} fault{'s' if faults > 1 else ''}, each with its remedy"
    )
    return 1 if faults else 0


def _register(parsed: argparse.Namespace) -> int:
    from lora_select.data.register import register
    from lora_select.events import emit_registered

    manifest = register(Path(parsed.path), Path(parsed.ledger))
    print(f"registered {manifest.path} ({manifest.digest[:12]}) in {parsed.ledger}")
    print(emit_registered(manifest, os.environ.get("PREFECT_API_URL")))
    return 0


def _explain(parsed: argparse.Namespace) -> int:
    from lora_select.history import read_run
    from lora_select.selection.explain import explain

    print(explain(read_run(parsed.run_folder).decision))
    return 0


def _replay(parsed: argparse.Namespace) -> int:
    from lora_select.history import replay

    differences = replay(parsed.run_folder)
    if not differences:
        print("the recorded evidence gives the recorded decision, byte for byte")
        return 0
    print("the recorded decision does not follow from the recorded evidence:")
    for difference in differences:
        print(f"  {difference}")
    return 1


def _compare(parsed: argparse.Namespace) -> int:
    from lora_select.history import comparison

    print(comparison(parsed.run_folders))
    return 0


def _node(parsed: argparse.Namespace) -> int:
    from lora_select.training.node import serve

    serve(Path(parsed.runs_dir), int(parsed.number))
    return 0


def _ui(parsed: argparse.Namespace) -> int:
    from lora_select.tracking.store import serve

    return serve(parsed.tracking_uri, parsed.port)


if __name__ == "__main__":
    sys.exit(main())
