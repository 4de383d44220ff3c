"""`lora-select noise`: how far seeds of one setting differ, for a gate that need not assume the worst."""

import argparse
from pathlib import Path

from lora_select.cli import options
from lora_select.cli.line.finetune import SECTIONS

SEEDS = 5


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    noise = commands.add_parser(
        "noise",
        help="train a plan again with other seeds: what the gate may ask of a champion's rival",
        allow_abbrev=False,
    )
    options.add_inputs(noise, SECTIONS)
    noise.add_argument(
        "--seeds", type=int, default=SEEDS, metavar="N", help=f"trainings, the run's own among them (default: {SEEDS})"
    )
    noise.set_defaults(run=_noise)


def _noise(parsed: argparse.Namespace) -> int:
    from lora_select.pipeline import line, seeds
    from lora_select.pipeline.run import opened

    words = [word for word in parsed.inputs if not options.OVERRIDE.match(word)]
    if len(words) == 1 and (config := Path(words[0]) / "config.json").is_file():  # of a run
        parsed.inputs[parsed.inputs.index(words[0])] = str(config)
    config = options.config_of(parsed)
    line.check_installed()
    with opened(config, observers=[options.terminal(parsed)]) as run:
        made = seeds.measure(run, parsed.seeds).record
        run.place.say(
            f"for the gate: promotion.seed_noise={run.folder}, or the number, promotion.seed_noise={made.asked:.3g}"
        )
    return 0
