"""`lora-select`: ask, look back, recompute. Heavy imports happen inside the commands, so that `--help` is instant."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from lora_select import __version__, recommend_command
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

    calibrate = commands.add_parser(
        "calibrate", help="predictions of past runs beside what came out, and constants refitted"
    )
    calibrate.add_argument("folders", metavar="RUNS", nargs="+", help="folders of runs, such as runs")
    calibrate.add_argument("--out", help="file for the refitted constants (calibration.json)")
    calibrate.set_defaults(run=_calibrate)

    compare = commands.add_parser("compare", help="runs side by side, and a link to MLflow's comparison view")
    compare.add_argument("run_folders", metavar="RUN", nargs="+")
    compare.set_defaults(run=_compare)

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

    recommend = commands.add_parser(
        "recommend", help="what to train, for another trainer: the choice and that trainer's files"
    )
    recommend_command.add_options(recommend)
    recommend.set_defaults(run=recommend_command.run)

    number = os.environ.get("SLURM_NODEID") or os.environ.get("JOB_COMPLETION_INDEX")
    node = commands.add_parser("node", help="join the training runs of a flow on another node")
    node.add_argument("runs_dir", metavar="RUNS", help="the flow's `runs_dir`, on a file system that the nodes share")
    node.add_argument(
        "--number", type=int, default=number, required=number is None, help="1 for the second node, 2, ..."
    )
    node.set_defaults(run=_node)

    export = commands.add_parser("export", help="a run's adapter as plain LoRA of one rank, or merged into the base")
    export.add_argument("run_folder", metavar="RUN", help="a run's folder, such as runs/latest, or a PEFT folder")
    export.add_argument("--to", choices=("lora", "merged"), default="lora")
    export.add_argument("--out", required=True, help="a new folder")
    export.add_argument("--rank", type=int, help="of the LoRA; by default the least within --max-error")
    export.add_argument("--max-error", type=float, default=1e-2, help="largest ||dW - B A|| / ||dW|| (default 0.01)")
    export.add_argument("--base", help="the base model, when the adapter does not name it")
    export.set_defaults(run=_export)

    variants = commands.add_parser(
        "variants", help="the catalogue for your model and setting, and what is refused and why"
    )
    variants.add_argument("--model", help="as `base_model.source`; without it one 4096 x 4096 layer")
    variants.add_argument("--r", type=int, default=16)
    variants.add_argument("--base", choices=("nf4", "int8"))
    variants.add_argument("--serve", choices=("vllm",))
    variants.add_argument("--must-merge", action="store_true")
    variants.add_argument("--zero-stage", type=int, choices=(0, 1, 2, 3), default=0)
    variants.add_argument(
        "--verify", action="store_true", help="measure every cell that is missing, write the matrix and its page"
    )
    variants.add_argument("--again", action="store_true", help="with --verify: also what is recorded already")
    variants.add_argument("--only", nargs="*", default=(), metavar="NAME", help="with --verify: these variants")
    variants.add_argument("--setting", nargs="*", default=(), help="with --verify: such as llama/nf4 or llama/zero3")
    variants.set_defaults(run=_variants)

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
    from lora_select.selection.outcome import outcome

    run = read_run(parsed.run_folder)
    print(explain(run.decision))
    made = outcome(run.decision, run.evaluation) if run.evaluation else None
    if made:
        print(f"\nWhat came out: {made}.")
    return 0


def _calibrate(parsed: argparse.Namespace) -> int:
    from lora_select.calibrate import calibrate

    print(calibrate(parsed.folders, Path(parsed.out) if parsed.out else None))
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


def _export(parsed: argparse.Namespace) -> int:
    from lora_select.export.command import export

    run, out = Path(parsed.run_folder), Path(parsed.out)
    print(export(run, parsed.to, out, rank=parsed.rank, max_error=parsed.max_error, base=parsed.base))
    print(f"written to {out}")
    return 0


def _variants(parsed: argparse.Namespace) -> int:
    from lora_select.capability import listing

    if parsed.verify:
        return _verify(parsed)
    asked = {"r": parsed.r, "base": parsed.base, "serve": parsed.serve, "must_merge": parsed.must_merge}
    lines, where = listing.listing(parsed.model, **asked, zero_stage=parsed.zero_stage)
    shown = listing.show(lines, where, plain=not sys.stdout.isatty())
    if isinstance(shown, str):
        print(shown)
    else:
        from rich.console import Console

        Console().print(shown)
    return 0


def _verify(parsed: argparse.Namespace) -> int:
    from lora_select.capability import page
    from lora_select.capability.verify import verify

    found = verify(names=parsed.only, settings=parsed.setting, again=parsed.again)
    docs = Path("docs")
    if docs.is_dir():
        (docs / "variants.md").write_text(page.page(found), encoding="utf-8")
    works, refused, rest = page.counts(found)
    print(f"{works} cells work, {refused} are refused, {rest} were not run")
    return 0


def _analyze(parsed: argparse.Namespace) -> int:
    from lora_select import analysis, progress_bar

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


def _ui(parsed: argparse.Namespace) -> int:
    from lora_select.tracking.store import serve

    return serve(parsed.tracking_uri, parsed.port)


if __name__ == "__main__":
    sys.exit(main())
