"""`lora-select recommend`: what to train, and the files of the trainer that will do it."""

import argparse
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.cli import options

if TYPE_CHECKING:
    from lora_select.api.results import Choice
    from lora_select.recipes import Emitted

SECTIONS = ("base_model", "dataset", "analysis", "selection", "training", "recipes", "tracking")
WIDTH = 130
ASK = "Would examples in the prompt do, without a training? `evaluation.few_shot=4` measures that first."


def add(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add the command."""
    recommend = commands.add_parser(
        "recommend",
        help="what to train, for another trainer: the choice and that trainer's files",
        allow_abbrev=False,
    )
    options.add_inputs(recommend, SECTIONS)
    recommend.add_argument(
        "--out", default="recommendation", help="folder for records and files (default: recommendation)"
    )
    options.add_json(recommend)
    recommend.set_defaults(run=_recommend)


def _recommend(parsed: argparse.Namespace) -> int:
    from lora_select.api.results import Choice
    from lora_select.pipeline import line
    from lora_select.pipeline.run import opened

    config = options.config_of(parsed, tracking_uri=None)
    with opened(config, observers=[options.terminal(parsed)]) as run:
        choice = Choice(run, line.recommend(run, config.recipes.trainers))
        written = choice.write(parsed.out)
    if parsed.json:
        files = [{"trainer": one.tool, "folder": str(one.folder), "command": one.written.command} for one in written]
        answer = {"decision": options.plain(choice.decision), "plan": options.plain(choice.plan), "written": files}
        shown = options.plain(choice.few_shot) if choice.few_shot else None
        options.print_json(answer | {"few_shot": shown, "run": str(choice.folder)})
        return 0
    print(page(choice, written, Path(parsed.out)))
    return 0


def page(choice: "Choice", written: "Sequence[Emitted]", out: Path) -> str:
    """Whether examples would do, where that was asked; the answer and what decided it, what training will take, and what was written."""
    from lora_select.report.verdict import before_training
    from lora_select.selection.explanation import brief

    told = before_training(choice.few_shot) if choice.few_shot else ()
    lines = ["", *map(_wrapped, told), *[""] * bool(told), _wrapped(brief(choice.decision, str(out)))]
    lines += [ASK] if choice.few_shot is None and choice.could_be_shown else []
    lines += ["", *_expected(choice), "", "Written:"]
    for one in written:
        lines.append(f"  - {one.folder}:  {one.written.command}")
        lines += [f"      {note}" for note in one.written.notes]
    lines.append(f"  - {out}: the records; `lora-select replay {out}` recomputes the decision from them")
    lines += _serving(choice)
    lines += [f"Note: {note}." for note in choice.notes(written, out)]
    return "\n".join(lines)


def _serving(choice: "Choice") -> list[str]:
    """From the trained adapter to the engine that was named."""
    from lora_select import serving
    from lora_select.variants import named
    from lora_select.variants.base import served

    engine, spec = choice.decision.inputs.serve, choice.decision.choice
    if engine is None:
        return []
    commands = serving.steps(engine, served(named(spec.variant, spec.r or 1)), choice.run.base.source)
    return [f"Serving by {serving.ENGINES[engine].title}, once trained:", *(f"  {line}" for line in commands)]


def _expected(choice: "Choice") -> list[str]:
    plan = choice.plan
    where = "this machine's CPU" if plan.device == "cpu" else "one GPU"
    how = (
        "by the speed of lora-select's own trainer here, measured on a few micro-batches; others are often slower"
        if choice.is_measured_here
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
