"""`lora-select export`: an adapter in the form that its engine takes."""

import argparse
import functools
import sys
import tempfile
from pathlib import Path

from lora_select.errors import InputError
from lora_select.serving import ENGINES

LEAST = "least"


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    export = commands.add_parser(
        "export", help="a run's adapter in the form that every engine reads, or its engine's own"
    )
    export.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest, or a PEFT folder")
    export.add_argument(
        "--to", choices=("lora", "gguf", "mlx", "merged"), help="default: what --serve takes, else lora"
    )
    export.add_argument("--serve", choices=tuple(ENGINES), help="the engine: its form, its limits and its command")
    export.add_argument(
        "--gguf", type=Path, help="the base as GGUF, for llama.cpp and Ollama: checked to be the same model"
    )
    export.add_argument("--out", required=True, help="a new folder")
    export.add_argument(
        "--rank",
        type=_rank,
        help="of the LoRA; by default its own, or the least within --max-error; `least`: that keeps the task's loss within 1 %% on rows "
        "kept from training",
    )
    export.add_argument("--max-error", type=float, default=1e-2, help="largest ||dW - B A|| / ||dW|| (default 0.01)")
    export.add_argument("--base", help="the base model, when the adapter does not name it")
    export.set_defaults(run=_export)


def _export(parsed: argparse.Namespace) -> int:
    from lora_select.export.command import export

    run, out = Path(parsed.run_folder), Path(parsed.out)
    asked = {"max_error": parsed.max_error, "base": parsed.base, "serve": parsed.serve, "gguf": parsed.gguf}
    if parsed.rank != LEAST:
        print(export(run, parsed.to, out, rank=parsed.rank, **asked))
    else:
        if parsed.to == "merged" or parsed.serve == "merged":
            raise InputError(f"a merged model has no rank; leave --rank {LEAST} out")
        from lora_select.pipeline.stages.narrow import narrow

        with tempfile.TemporaryDirectory() as place:
            progress = functools.partial(print, file=sys.stderr, flush=True)
            print(narrow(run, Path(place) / "adapter", base=parsed.base, progress=progress))
            print(export(Path(place) / "adapter", parsed.to, out, rank=None, **asked))
    print(f"written to {out}")
    return 0


def _rank(text: str) -> int | str:
    """A whole number above 0, or `least`."""
    if text == LEAST:
        return LEAST
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a whole number above 0 nor `{LEAST}`")
    return int(text)
