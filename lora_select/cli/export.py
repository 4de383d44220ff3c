"""`lora-select export`: an adapter as plain LoRA, or merged."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    export = commands.add_parser("export", help="a run's adapter as plain LoRA of one rank, or merged into the base")
    export.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest, or a PEFT folder")
    export.add_argument("--to", choices=("lora", "merged"), default="lora")
    export.add_argument("--out", required=True, help="a new folder")
    export.add_argument("--rank", type=int, help="of the LoRA; by default the least within --max-error")
    export.add_argument("--max-error", type=float, default=1e-2, help="largest ||dW - B A|| / ||dW|| (default 0.01)")
    export.add_argument("--base", help="the base model, when the adapter does not name it")
    export.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    from lora_select.export.command import export

    run, out = Path(parsed.run_folder), Path(parsed.out)
    print(export(run, parsed.to, out, rank=parsed.rank, max_error=parsed.max_error, base=parsed.base))
    print(f"written to {out}")
    return 0
