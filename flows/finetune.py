"""The whole job as one flow. By hand: `python -m flows.finetune --config infra/runs/quickstart.yaml`."""

import sys

from prefect import State, flow, get_run_logger
from prefect.runtime import flow_run

from flows.arguments import run_from_command_line
from lora_select.api import last_lines
from lora_select.config import RunConfig, load
from lora_select.errors import InputError
from lora_select.pipeline import line
from lora_select.pipeline.history import is_over
from lora_select.pipeline.run import folder_of
from tasks.opening import next_in_line, opened
from tasks.outcome import ended, unchanged
from tasks.suspend import ask, asked_before


def run_name() -> str:
    """The config's name and its model: what a list of flow runs tells apart."""
    told = flow_run.parameters
    try:
        config = load(told["config"], told.get("overrides") or [])
    except InputError:  # the flow itself says what is wrong with it
        return str(told["config"])
    return f"{config.name} on {config.base_model.source}"


@flow(name="finetune", flow_run_name=run_name)
def finetune(config: str, overrides: list[str] | None = None, dry_run: bool = False) -> State[str] | str:
    """Profile, analyze, select, train, check, evaluate, promote, report; the last state is named after the answer, its data the run's folder.

    A run that an event began works on the registered dataset that has waited longest, and on none that a finished run has trained on.

    Args:
        config: a YAML file (see `lora_select.config.RunConfig`).
        overrides: any field as `section.field=value`.
        dry_run: stop after the plan: what would be chosen and trained, how long, how much memory.
    """
    loaded = load(config, overrides or [])
    if not dry_run:
        if loaded.dataset.registered:
            return walked_unless_over(next_in_line(loaded, config, overrides or []))
        return walked(loaded)
    with opened(loaded) as run:
        _, plan = line.plan(run)
        last_lines.say_plan(run, plan.record)
        return str(run.folder)


def walked_unless_over(config: RunConfig) -> State[str]:
    """Walk the line, but where its run is over say so at once; one that is deferred, answered or no longer asked is gone on with."""
    folder = folder_of(config)
    if not asked_before() and is_over(folder, tracked=config.tracking.uri is not None):
        state = unchanged(str(folder))
        print(state.message, flush=True)
        get_run_logger().info("%s", state.message)
        return state
    return walked(config)


def walked(config: RunConfig) -> State[str]:
    """Walk the line to its end; ask where its promotion awaits approval. A run that is resumed first enters what was answered."""
    ask(config)
    with opened(config) as run:
        done = line.finetune(run)
        last_lines.say_result(run, done)
    ask(config)
    return ended(run, done)


if __name__ == "__main__":
    sys.exit(run_from_command_line(finetune, __doc__ or "", may_dry_run=True))
