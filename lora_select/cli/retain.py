"""`lora-select retain`: an adapter that keeps its task and gives back what the base model knew."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lora_select.records import Retention


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    command = commands.add_parser(
        "retain", help="filter an adapter so that it keeps its task and gives back what the base model knew"
    )
    command.add_argument(
        "adapter", metavar="ADAPTER", help="a PEFT folder that was trained anywhere, or a run's folder"
    )
    command.add_argument("--base", help="the base model, where the adapter's config does not say")
    command.add_argument("--data", required=True, help="the task's rows: a file, a folder, a hub id or sample:NAME")
    command.add_argument(
        "--reference",
        action="append",
        metavar="R",
        help="what the model should still know: prose, code, self, a file, a hub id; may be repeated (default: prose)",
    )
    command.add_argument(
        "--judge",
        action="append",
        metavar="R",
        help="text that only judges (default: an embedded set that gives nothing)",
    )
    command.add_argument(
        "--tolerance",
        metavar="1%",
        help="largest rise of the task's loss: a share of it, or nats (default: 1%%)",
    )
    command.add_argument("--out", required=True, help="a new folder")
    command.add_argument(
        "--kept",
        metavar="FILE",
        help="rows of the task that were kept from training; they choose the strength (default: a part of --data)",
    )
    command.add_argument("--evaluation", metavar="FILE", help="with --kept: rows of the task that only judge")
    command.add_argument("--quantize", choices=("nf4", "int8"), help="how the base model is held")
    command.add_argument(
        "--keep-moments",
        action="store_true",
        help="also write the task's second moments, for the next training's filter",
    )
    command.add_argument(
        "--earlier",
        action="append",
        metavar="FILE",
        help="second moments that --keep-moments wrote for an earlier training of this base; may be repeated",
    )
    for name, default in (("max-length", 1024), ("tokens", 8192), ("seed", 0)):
        command.add_argument(f"--{name}", type=int, default=default, metavar="N", help=f"default: {default}")
    command.add_argument(
        "--prior",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="isotropic share of the reference's second moments (default: 0)",
    )
    command.add_argument(
        "--max-error",
        type=float,
        default=0.05,
        metavar="SHARE",
        help="of its norm that an update which is no LoRA may lose where it is written as one (default: 0.05)",
    )
    command.add_argument("--json", action="store_true", help="print the record instead of the page")
    command.set_defaults(run=_retain)


def _retain(parsed: argparse.Namespace) -> int:
    from lora_select import progress, records
    from lora_select.retention.standalone import retain

    shown = progress.silence if parsed.json else progress.display()
    with shown("retain") as report:
        made = retain(
            parsed.adapter,
            parsed.data,
            parsed.out,
            base=parsed.base,
            references=tuple(parsed.reference or ("prose",)),
            judges=tuple(parsed.judge or ()),
            tolerance=parsed.tolerance,
            quantize=parsed.quantize,
            max_length=parsed.max_length,
            tokens=parsed.tokens,
            prior=parsed.prior,
            max_error=parsed.max_error,
            keep_moments=parsed.keep_moments,
            earlier=tuple(parsed.earlier or ()),
            seed=parsed.seed,
            kept=parsed.kept,
            evaluation=parsed.evaluation,
            progress=report,
        )
    if parsed.json:
        print(records.to_json(made), end="")
    else:
        page(made, Path(parsed.out), print)
    return 0


def page(made: "Retention", out: Path, say: Callable[[str], None]) -> None:
    """What a person reads: the decision, a table before and after, and why."""
    from lora_select.retention.plot import task_losses
    from lora_select.retention.standalone import FRONTIER, RECORD

    decision, evidence = made.decision, made.evidence
    say(
        f"retention  {decision.choice}"
        + (f", strength {decision.strength:.3g}" if decision.strength else "")
        + f"; kappa {evidence.kappa:.2f}"
    )
    for reason in decision.reasons:
        say(f"           {reason}")
    if decision.choice == "none":
        say("           the adapter in the folder is the one that was trained")
    arms = ["raw", *(arm for arm in ("scale", "filter") if any(arm in one.rise for one in made.references))]
    width = max(28, *(len(one.name) + 16 for one in made.references))
    say("")
    say(f"{'nats a token':<{width}}{'base':>10}" + "".join(f"{arm:>10}" for arm in arms))
    task = task_losses(made)
    chose = "rows that chose nothing" if made.task else "rows that chose"
    say(f"{'task, ' + chose:<{width}}{'':>10}" + "".join(f"{task[arm]:>10.4f}" for arm in arms))
    for one in made.references:
        name = f"{one.name}, {'other text' if one.gave else 'gave nothing'}"
        say(f"{name:<{width}}{one.base_loss:>10.4f}" + "".join(f"{one.rise[arm].difference:>+10.4f}" for arm in arms))
        if one.exact:
            shares = "".join(f"{one.exact[arm].adapted:>10.0%}" for arm in arms)
            say(f"{'  its answers that are exact':<{width}}{next(iter(one.exact.values())).base:>10.0%}{shares}")
    say("")
    for note in made.notes:
        say(f"note       {note}")
    say(f"written    {out / made.directory}: a PEFT folder; {out / FRONTIER}; {out / RECORD}  ({made.seconds:.0f} s)")
