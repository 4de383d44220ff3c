"""The command `lora-select recommend`: its options, and the page that a person reads."""

import argparse
import re
import textwrap
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.errors import InputError

if TYPE_CHECKING:
    from lora_select.recommend import Recommendation

UNITS = {"GiB": 1.0, "MiB": 1 / 1024, "GB": 1e9 / 2**30, "MB": 1e6 / 2**30}
TOOLS = ("peft", "trl", "llamafactory", "axolotl", "ms-swift")
WIDTH = 130


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    recommend = commands.add_parser(
        "recommend", help="what to train, for another trainer: the choice and that trainer's files"
    )
    add_options(recommend)
    recommend.set_defaults(run=run)


def add_options(command: argparse.ArgumentParser) -> None:
    """Everything that may be asked; defaults are those of a run's config."""
    command.add_argument("--model", required=True, help="a folder, a .gguf file, a hub id or sample:NAME")
    command.add_argument("--data", required=True, help="a file, a folder, a hub id or sample:NAME")
    command.add_argument(
        "--out", default="recommendation", help="folder for records and files (default: recommendation)"
    )
    command.add_argument(
        "--emit", nargs="+", choices=TOOLS, default=["peft"], metavar="TOOL", help=f"{', '.join(TOOLS)} (default: peft)"
    )
    command.add_argument(
        "--prefer-retention",
        action="store_true",
        help="of what ties within one standard error in the race, take what forgets at most half as much",
    )
    command.add_argument("--serve", choices=("vllm",), help="what will serve the adapter")
    command.add_argument("--must-merge", action="store_true", help="the adapter will be merged into the base")
    command.add_argument(
        "--base", choices=("nf4", "int8"), help="how the base is stored in training (default: as it is)"
    )
    command.add_argument("--memory", metavar="24GiB", help="of the device that trains (default: this machine's)")
    command.add_argument(
        "--device", choices=("auto", "cpu", "cuda"), default="auto", help="that trains; auto: this machine's"
    )
    command.add_argument(
        "--budget",
        default="0%",
        metavar="300%",
        help="share of the training for probes: 300%% tries plain LoRA at three rates, 600%% also a rival (default: none)",
    )
    for option in ("variant", "targets"):
        command.add_argument(f"--{option}", help=f"as `selection.{option}` of a run")
    command.add_argument("--r", type=int, help="as `selection.r` of a run")
    command.add_argument("--learning-rate", type=float, help="as `selection.learning_rate` of a run")
    command.add_argument("--epochs", type=_positive(float), default=1.0, help="default: 1")
    numbers = {"batch": 16, "max-length": 1024, "max-eval-rows": 256, "microbatches": 32, "microbatch-size": 2}
    numbers |= {"sketch-size": 32, "base-loss-rows": 64, "seed": 0}
    for option, default in numbers.items():
        kind = _positive(int) if default else int
        command.add_argument(f"--{option}", type=kind, default=default, metavar="N", help=f"default: {default}")
    command.add_argument("--max-train-rows", type=_positive(int), metavar="N", help="default: all")


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"must be above 0, got {text}")
        return value

    return number


def gib(text: str | None) -> float | None:
    """Memory with a unit, in GiB.

    Raises:
        InputError: no number above 0, or no unit.

    Example:
        >>> gib("24GiB"), gib("512 MiB"), gib(None)
        (24.0, 0.5, None)
    """
    if text is None:
        return None
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    unit = next((unit for unit in UNITS if found and unit.lower() == found[2].lower()), None)
    if found is None or unit is None or float(found[1]) <= 0:
        raise InputError(f"--memory {text!r} must be a number above 0 with a unit ({', '.join(UNITS)}), such as 24GiB")
    return float(found[1]) * UNITS[unit]


def share(text: str) -> float:
    """A share of a training's cost, at least 0; short trainings need races that cost more than they do.

    Raises:
        InputError: neither `5%` nor `0.05`.

    Example:
        >>> share("5%"), share("0.05"), share("300%")
        (0.05, 0.05, 3.0)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(%?)\s*", text)
    value = float(found[1]) / (100 if found[2] else 1) if found else -1.0
    if value < 0:
        raise InputError(f"--budget {text!r} must be a share of the training's cost, at least 0%, such as 5%")
    return value


def run(parsed: argparse.Namespace) -> int:
    """Recommend and print."""
    from lora_select import progress as progress_bar
    from lora_select import recommend
    from lora_select.prospect import Wish

    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")  # of names that PEFT still uses
    wish = Wish(
        serve=parsed.serve,
        quantize=parsed.base,
        must_merge=parsed.must_merge,
        variant=parsed.variant,
        targets=parsed.targets,
        r=parsed.r,
        learning_rate=parsed.learning_rate,
        memory_gib=gib(parsed.memory),
        device=parsed.device,
        batch=parsed.batch,
        epochs=parsed.epochs,
        tools=tuple(dict.fromkeys(parsed.emit)),
        race=share(parsed.budget),
        prefer_retention=parsed.prefer_retention,
    )
    measuring = recommend.Measuring(
        model=parsed.model,
        data=parsed.data,
        max_length=parsed.max_length,
        max_train_rows=parsed.max_train_rows,
        max_eval_rows=parsed.max_eval_rows,
        microbatches=parsed.microbatches,
        microbatch_size=parsed.microbatch_size,
        sketch_size=parsed.sketch_size,
        base_loss_rows=parsed.base_loss_rows,
        seed=parsed.seed,
    )
    with progress_bar.shown() as (progress, console):
        made = recommend.recommend(
            measuring,
            wish,
            Path(parsed.out),
            lambda line: console.print(line, soft_wrap=True, highlight=False, markup=False),
            progress,
        )
    print(page(made, Path(parsed.out)))
    return 0


def page(made: "Recommendation", out: Path) -> str:
    """The answer: the decision in words, what training will take, and what was written."""
    from lora_select.selection.explanation import explain

    lines = [_wrapped(explain(made.decision)), "", *_expected(made), "", "Written:"]
    for one in made.emitted:
        lines.append(f"  - {one.folder}:  {one.written.command}")
        lines += [f"      {note}" for note in one.written.notes]
    lines.append(f"  - {out}: the records; `lora-select explain {out}` and `lora-select replay {out}` read them")
    lines += [f"Note: {note}." for note in made.notes]
    return "\n".join(lines)


def _expected(made: "Recommendation") -> list[str]:
    plan = made.plan
    where = "this machine's CPU" if plan.device == "cpu" else "one GPU"
    how = (
        "by the speed of lora-select's own trainer here, measured on a few micro-batches; others are often slower"
        if made.measured_here
        else "computed from sizes alone, not measured"
    )
    checkpointing = ", activations computed twice" if plan.gradient_checkpointing else ""
    return [
        f"Expected on {where}, in one process:",
        f"  - {plan.total_steps} steps of {plan.effective_batch_size} rows ({plan.micro_batch_size} at a time), {plan.precision}"
        f"{checkpointing}, {plan.warmup_steps} step{'' if plan.warmup_steps == 1 else 's'} of warm-up, then {plan.lr_schedule}",
        f"  - time    {plan.minutes.expected:.1f} min ({plan.minutes.low:.1f} to {plan.minutes.high:.1f}), {how}",
        f"  - memory  {plan.memory_gib.expected:.1f} GiB ({plan.memory_gib.low:.1f} to {plan.memory_gib.high:.1f}), computed for a "
        "trainer that forms all logits",
    ]


def _wrapped(text: str) -> str:
    """Long paragraphs and list items broken at the page's width."""
    made = []
    for line in text.splitlines():
        hang = "    " if line.startswith("  - ") else ""
        made += textwrap.wrap(line, WIDTH, subsequent_indent=hang, break_long_words=False) or [""]
    return "\n".join(made)
