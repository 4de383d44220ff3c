"""`lora-select mcp`: these commands for agents, over the Model Context Protocol."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    mcp = commands.add_parser("mcp", help="serve these commands to agents over the Model Context Protocol (stdio)")
    mcp.add_argument(
        "--root", nargs="+", default=["."], help="folders that agents may read and write (default: the working folder)"
    )
    mcp.set_defaults(run=_mcp)


def _mcp(parsed: argparse.Namespace) -> int:
    from lora_select.agents.server import serve

    serve([Path(root).resolve() for root in parsed.root])
    return 0
