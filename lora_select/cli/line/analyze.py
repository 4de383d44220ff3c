"""`lora-select analyze`: the spectral pass alone, with a table and figures."""

import argparse
import shutil
from pathlib import Path

from lora_select.cli import options
from lora_select.errors import require

SECTIONS = ("base_model", "dataset", "analysis", "training", "diagnostics", "tracking")


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    analyze = commands.add_parser(
        "analyze", help="the spectral pass on a model and data: per-layer table and figures", allow_abbrev=False
    )
    options.add_inputs(analyze, SECTIONS)
    analyze.add_argument("--out", default="analysis", help="folder for spectra.json and figures (default: analysis)")
    options.add_json(analyze)
    analyze.set_defaults(run=_analyze)


def _analyze(parsed: argparse.Namespace) -> int:
    from lora_select import records
    from lora_select.pipeline import line
    from lora_select.pipeline.run import opened
    from lora_select.report import layers, plots

    require("matplotlib", "report", "the figures of `analyze`", "call `lora_select.analyze` from Python")
    config = options.config_of(parsed, tracking_uri=None)
    with opened(config, observers=[options.terminal(parsed)]) as run:
        measured = line.analyze(run)
        costs = line.diagnose(run, measured)
    spectra = measured.spectra
    out = Path(parsed.out)
    out.mkdir(parents=True, exist_ok=True)
    records.write(out / "spectra.json", spectra.record)
    shutil.copy(spectra.folder / spectra.record.tensors.path, out / spectra.record.tensors.path)
    plots.signal_ranks(spectra.record, out / "signal-ranks.png")
    plots.spectrum(spectra.record, out / "spectrum.png")
    if costs is not None:
        records.write(out / "costs.json", costs)
    if parsed.json:
        options.print_json(options.plain(spectra.record))
        return 0
    layers.print_table(spectra.record, costs)
    more = "" if costs is None else ", costs.json"
    print(f"written: {out}/spectra.json, spectra.safetensors, signal-ranks.png, spectrum.png{more}")
    return 0
