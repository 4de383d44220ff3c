"""Tasks of EleutherAI's `lm-eval` by the harness as a library: local task files, the model that is loaded already, one number a document."""

import contextlib
import importlib
import io
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.errors import InputError, WorldError

INSTALL = "`evaluation.tasks` needs lm-eval, which is not installed: pip install 'lora-select[lm-eval]'"


@final
@dataclass(frozen=True)
class TaskScores:
    """One metric of one task: a number a document in the order of the documents, and which way is better."""

    values: tuple[float, ...]
    better: str

    @property
    def is_share(self) -> bool:
        """Whether each document is right or wrong."""
        return all(value in (0.0, 1.0) for value in self.values)


def check(tasks: Sequence[str], folder: Path) -> None:
    """Refuse at once what cannot be asked.

    Args:
        tasks: names of tasks.
        folder: where their YAML files are.

    Raises:
        InputError: lm-eval is missing, the folder has no task files, or it has none of that name.
    """
    if not tasks:
        return
    known = _manager(folder).all_tasks
    unknown = [task for task in tasks if task not in known]
    if unknown:
        have = ", ".join(known) or "none"
        raise InputError(
            f"`evaluation.tasks`: {unknown[0]!r} is not in {folder} (`evaluation.task_folder`); there: {have}"
        )


def run(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[str],
    folder: Path,
    *,
    limit: int | None = None,
    batch_size: int = 8,
    longest: int | None = None,
) -> dict[str, TaskScores]:
    """Ask a loaded model the tasks.

    Args:
        model: a causal language model of transformers, adapted or not.
        tokenizer: its own.
        tasks: names, each defined in a YAML file in `folder`.
        folder: files that a task names are looked for here first.
        limit: the most documents a task; None for all.
        batch_size: prompts a forward pass.
        longest: the most tokens the model can place; None lets the harness find out.

    Returns:
        `<task>_<metric>` -> one number a document. A metric that the harness has for the whole task alone is left out.

    Raises:
        InputError: as :func:`check`.
        WorldError: the harness failed, such as on a data file that is not there.
    """
    check(tasks, folder)
    # By name: the harness's decorators hide its signatures from a type checker.
    lm_eval = importlib.import_module("lm_eval")
    huggingface = importlib.import_module("lm_eval.models.huggingface")
    with _quiet(), contextlib.chdir(folder):
        try:
            wrapped = huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size, max_length=longest)
            found = lm_eval.simple_evaluate(
                wrapped,
                tasks=list(tasks),
                task_manager=_manager(Path()),
                limit=limit,
                log_samples=True,
                bootstrap_iters=0,
                verbosity="ERROR",
            )
        except Exception as error:
            first = (str(error).splitlines() or [""])[0][:300]
            raise WorldError(f"lm-eval failed on {', '.join(tasks)}: {type(error).__name__}: {first}") from error
    assert found is not None, "simple_evaluate returns None on other ranks than the first"
    scores: dict[str, TaskScores] = {}
    for task in tasks:
        scores |= _per_document(task, found["samples"][task], found["higher_is_better"][task])
    return scores


def _per_document(task: str, samples: Sequence[Mapping[str, Any]], higher: Mapping[str, bool]) -> dict[str, TaskScores]:
    """The numbers of each metric, the first filter's where a task has several."""
    first = samples[0]["filter"] if samples else None
    ordered = sorted((one for one in samples if one["filter"] == first), key=lambda one: one["doc_id"])
    found = {}
    for metric in ordered[0]["metrics"] if ordered else ():
        values = [one.get(metric) for one in ordered]
        if all(isinstance(value, int | float) for value in values):
            better = "higher" if higher.get(metric, True) else "lower"
            found[f"{task}_{metric}"] = TaskScores(tuple(float(v) for v in values if v is not None), better)
    return found


def _manager(folder: Path) -> Any:
    try:
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(INSTALL) from error
    if not any(folder.glob("*.yaml")):
        raise InputError(f"`evaluation.task_folder` {folder} holds no *.yaml file of an lm-eval task")
    with _quiet():
        return TaskManager(include_path=str(folder.resolve()), include_defaults=False)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Progress bars and warnings of the harness would tear our own lines."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
