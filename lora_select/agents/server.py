"""`lora-select mcp`: the commands as typed tools over standard input and output."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

from lora_select.agents.jobs import Jobs, JobState
from lora_select.agents.roots import inside, source
from lora_select.errors import InputError, WorldError

if TYPE_CHECKING:
    from mcp.server import MCPServer

INSTRUCTIONS = """lora-select says which LoRA variant, rank and learning rate to train, from a measuring pass over the user's model and rows.
`recommend` and `retain` take minutes: they return a job, which `job` looks at and `cancel` ends. `explain` what `recommend` wrote.
An answer with `error` names what to change. A tie means that no variant is shown to be better: say so, and claim no winner."""

Trainer = Literal["peft", "trl", "llamafactory", "axolotl", "ms-swift", "unsloth"]
Engine = Literal["vllm", "sglang", "llama.cpp", "ollama", "mlx", "merged"]


@final
@dataclass(frozen=True)
class VariantLine:
    """A variant for a model: trained parameters, cost next to LoRA (None where nobody measured it), and why it is refused."""

    name: str
    size: str
    parameters: int
    time: float | None
    memory_gb: float | None
    considered: bool
    refused: tuple[str, ...]


@final
@dataclass(frozen=True)
class Text:
    """An answer in words."""

    text: str


def make_server(roots: Sequence[Path]) -> tuple["MCPServer", Jobs]:
    """The server and its jobs.

    Args:
        roots: folders that may be read and written; relative paths and the jobs' files are below the first.

    Raises:
        InputError: a root is no folder, or the SDK is not installed.
    """
    for root in roots:
        if not root.is_dir():
            raise InputError(f"--root {root} is no folder; name one that exists")
    try:
        from mcp.server import MCPServer
    except ImportError as error:
        raise InputError(
            "`lora-select mcp` needs the package mcp; install it: pip install 'lora-select[mcp]'"
        ) from error
    server, jobs = MCPServer("lora-select", instructions=INSTRUCTIONS), Jobs(roots[0].resolve())
    for tool in (*_job_tools(roots, jobs), *_reading_tools(roots)):
        server.tool()(_told(tool))
    return server, jobs


def serve(roots: Sequence[Path]) -> None:
    """Serve until standard input ends; jobs that still run are ended then.

    Raises:
        InputError: as :func:`make_server`.
    """
    os.chdir(roots[0]) if roots and roots[0].is_dir() else None
    server, jobs = make_server(roots)
    try:
        server.run("stdio")
    finally:
        jobs.close()


def _job_tools(roots: Sequence[Path], jobs: Jobs) -> list[Callable[..., Any]]:
    def recommend(
        model: str,
        data: str,
        out: str = "recommendation",
        epochs: float = 1.0,
        trainers: list[Trainer] | None = None,
        serve: Engine | None = None,
        quantize: Literal["nf4", "int8"] | None = None,
        variant: str | None = None,
        race_budget: float = 0.0,
        few_shot: int = 0,
    ) -> JobState:
        """Measure a model and a dataset and choose variant, rank and learning rate; minutes. Poll the returned job.

        model, data: a path, `sample:NAME` or a hub id. out: the folder that is written. trainers: whose files are written too.
        serve: the engine that will serve the adapter. quantize: how the base is held in training. variant: only if the user insists.
        race_budget: 3 tries three learning rates in trainings as long as the real one first, 6 also a rival of LoRA.
        few_shot: 4 also says how far four examples in the prompt get without any training; a minute more.
        """
        told = [f"--model={source(model, roots)}", f"--data={source(data, roots)}", f"--out={inside(out, roots)}"]
        told += [f"--runs-dir={inside('runs', roots)}", f"--epochs={epochs}", f"--race-budget={race_budget}"]
        for option, value in (("serve", serve), ("quantize", quantize), ("variant", variant)):
            told += [f"--{option}={value}"] if value else []
        shown = [f"evaluation.few_shot={few_shot}"] if few_shot else []
        return jobs.start(["recommend", *shown, *told, "--trainers", *(trainers or ["peft"])])

    def retain(adapter: str, base: str, data: str, out: str) -> JobState:
        """Make an adapter give back what its base model knew, and say what that costs; minutes. Poll the returned job.

        adapter: a PEFT folder or a run's folder. base: its base model. data: the rows of its task. out: a new folder.
        """
        told = [f"--base={source(base, roots)}", f"--data={source(data, roots)}", f"--out={inside(out, roots)}"]
        return jobs.start(["retain", *told, str(inside(adapter, roots))])

    def job(job: str) -> JobState:
        """Where a job stands: its state, how long it has run, and the end of what it printed."""
        return jobs.state(job)

    def cancel(job: str) -> JobState:
        """End a job and everything that it started."""
        return jobs.cancel(job)

    return [recommend, retain, job, cancel]


def _reading_tools(roots: Sequence[Path]) -> list[Callable[..., Any]]:
    def explain(run: str) -> Text:
        """The decision of a run or a recommendation in words: the choice, why, what tied and what was refused."""
        from lora_select.pipeline.history import read_run
        from lora_select.report.verdict import before_training
        from lora_select.selection.explanation import explain as in_words

        read = read_run(inside(run, roots))
        return Text("\n".join([*(before_training(read.few_shot) if read.few_shot else ()), in_words(read.decision)]))

    def compare(runs: list[str]) -> Text:
        """Finished runs side by side: choice, learning rate, held-out loss with its interval, exact match, forgetting."""
        from lora_select.pipeline.history import comparison

        return Text(comparison([str(inside(run, roots)) for run in runs]))

    def variants(
        model: str | None = None,
        r: int = 16,
        quantize: Literal["nf4", "int8"] | None = None,
        serve: Engine | None = None,
        must_merge: bool = False,
    ) -> list[VariantLine]:
        """Every variant for a model and setting, and what is refused there and why; without a model for one 4096 x 4096 layer."""
        from lora_select.records import Constraints
        from lora_select.variants.listing import listing

        where = source(model, roots) if model else None
        lines, _ = listing(where, r, Constraints(serve=serve, quantized_base=quantize, must_merge=must_merge))
        return [
            VariantLine(one.name, one.size, one.parameters, one.time, one.memory_gb, one.candidate, one.refused)
            for one in lines
        ]

    def check_data(data: str) -> Text:
        """What would ruin a fine-tune on a dataset, by file and line, before anything is trained on it."""
        from lora_select.data.gate import check, text

        return Text(text.full(check.check_data(source(data, roots))))

    return [explain, compare, variants, check_data]


def _told(tool: Callable[..., Any]) -> Callable[..., Any]:
    """The tool with its errors as answers that a model reads; anything else is a crash, which the SDK reports as such."""
    import functools

    from mcp.server.mcpserver.exceptions import ToolError

    @functools.wraps(tool)
    def answered(*arguments: Any, **named: Any) -> Any:
        try:
            return tool(*arguments, **named)
        except (InputError, WorldError) as error:
            raise ToolError(str(error)) from error

    return answered
