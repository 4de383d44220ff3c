"""`lora-select node`: join the training runs of a flow on another node."""

import argparse
import os
from pathlib import Path

from lora_select.errors import require


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    number = os.environ.get("SLURM_NODEID") or os.environ.get("JOB_COMPLETION_INDEX")
    node = commands.add_parser("node", help="join the training runs of a flow on another node")
    node.add_argument("runs_dir", metavar="RUNS", help="the flow's `runs_dir`, on a file system that the nodes share")
    node.add_argument(
        "--number", type=int, default=number, required=number is None, help="1 for the second node, 2, ..."
    )
    node.set_defaults(run=_node)


def _node(parsed: argparse.Namespace) -> int:
    from lora_select.training.supervisor.agent import serve

    require("deepspeed", "train", "`node`")
    serve(Path(parsed.runs_dir), int(parsed.number))
    return 0
