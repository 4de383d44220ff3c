"""`lora-select analyze`: the spectral pass alone."""

import argparse
from pathlib import Path


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    analyze = commands.add_parser("analyze", help="the spectral pass on a model and data: per-layer table and figures")
    analyze.add_argument("--model", required=True, help="a folder, a .gguf file, a hub id or sample:NAME")
    analyze.add_argument("--data", required=True, help="a file, a folder, a hub id or sample:NAME")
    analyze.add_argument("--out", default="analysis", help="folder for spectra.json and figures (default: analysis)")
    for option, default in (
        ("microbatches", 32),
        ("microbatch-size", 2),
        ("sketch-size", 32),
        ("max-length", 1024),
        ("seed", 0),
    ):
        analyze.add_argument(f"--{option}", type=int, default=default, metavar="N", help=f"default: {default}")
    analyze.add_argument(
        "--curvature", action="store_true", help="also of the default candidate's adapter at its start"
    )
    analyze.add_argument("--quantize", choices=("nf4", "int8"), help="also every layer's error in this storage")
    analyze.set_defaults(run=_analyze)


def _analyze(parsed: argparse.Namespace) -> int:
    from lora_select import analysis
    from lora_select import progress as progress_bar

    request = analysis.Request(
        model=parsed.model,
        data=parsed.data,
        out=Path(parsed.out),
        microbatches=parsed.microbatches,
        microbatch_size=parsed.microbatch_size,
        sketch_size=parsed.sketch_size,
        max_length=parsed.max_length,
        seed=parsed.seed,
        curvature=parsed.curvature,
        quantize=parsed.quantize,
    )
    with progress_bar.shown() as (progress, _console):
        spectra = analysis.run(request, progress)
        costs = analysis.costs(request, spectra, progress)
    analysis.print_table(spectra, costs)
    more = "" if costs is None else ", costs.json"
    print(f"written: {request.out}/spectra.json, spectra.safetensors, signal-ranks.png, spectrum.png{more}")
    return 0
