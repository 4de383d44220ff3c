"""The Python API: plain keywords in, a result object out. Each function is the command of the same name.

Keywords are the fields of :mod:`lora_select.config` under their own names (`epochs=2`, `race_budget=3`, `quantize="nf4"`), with the same
defaults and the same checks.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select import environment

environment.prepare()  # before what it quiets is imported

# ruff: noqa: E402
from lora_select.api import in_memory
from lora_select.api.results import Choice, FinetunedRun, Measurement
from lora_select.config import RunConfig, words
from lora_select.errors import InputError
from lora_select.pipeline import line
from lora_select.pipeline.observers import Terminal
from lora_select.pipeline.run import Run, opened
from lora_select.pipeline.stage import Observer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    Model = str | Path | PreTrainedModel
    Data = str | Path | Iterable[Mapping[str, Any]]


def analyze(
    model: "Model",
    dataset: "Data",
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: bool | None = None,
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Measurement:
    """Measure rows, tokens and the spectra of every linear layer.

    Args:
        model: a hub id, a folder, a GGUF file, `sample:NAME`, or a loaded model (identified by its folder).
        dataset: a path, a hub id, a `datasets.Dataset`, or rows (mappings).
        tokenizer: of a loaded model, where its folder has none or another.
        progress: whether stages are printed; None prints on a terminal alone.
        overrides: any field as `section.field=value`.
        settings: any field of the config by its name.

    Raises:
        InputError: something cannot be used; a sentence with the way out.
    """
    config = _config(model, dataset, tokenizer, {"tracking_uri": None} | settings, overrides)
    with _opened(config, progress) as run:
        measured = line.analyze(run)
        return Measurement(run, measured, line.diagnose(run, measured))


def recommend(
    model: "Model",
    dataset: "Data",
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: bool | None = None,
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Choice:
    """What to train: variant, targets, rank, learning rate; why; and what that will take. Arguments as in :func:`analyze`.

    `trainers=[...]` refuses early what those trainers cannot express; :meth:`Choice.write` writes their files.

    Raises:
        InputError: something cannot be used; a sentence with the way out.
    """
    config = _config(model, dataset, tokenizer, {"tracking_uri": None} | settings, overrides)
    with _opened(config, progress) as run:
        asked = "trainers" in config.recipes.model_fields_set
        return Choice(run, line.recommend(run, config.recipes.trainers if asked else ()))


def finetune(
    model: "Model",
    dataset: "Data",
    *,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    progress: bool | None = None,
    overrides: Sequence[str] = (),
    **settings: Any,
) -> FinetunedRun:
    """The whole line: measure, choose, train, check in a new process, evaluate, report. Arguments as in :func:`analyze`.

    A call that was killed, or a recommendation with the same settings, is gone on with in the same folder.

    Raises:
        InputError: something cannot be used; a sentence with the way out.
        WorldError: training failed and no remedy was left.
    """
    line.check_installed()
    config = _config(model, dataset, tokenizer, settings, overrides)
    with _opened(config, progress) as run:
        line.finetune(run)
        return FinetunedRun(run.folder)


def load(folder: str | Path) -> FinetunedRun:
    """A run of before, such as `runs/latest`.

    Raises:
        InputError: there is no run in the folder; names those that are near.
    """
    run = FinetunedRun(folder)
    run.decision  # noqa: B018  (a folder without one is no run)
    return run


def _config(
    model: "Model", dataset: "Data", tokenizer: Any, settings: Mapping[str, Any], overrides: Sequence[str]
) -> RunConfig:
    asked = words.of(
        "", "", settings, overrides
    )  # what is wrong is refused before rows are written, which lie below `runs_dir`
    if asked.tracking.uri is not None and "name" not in settings and not isinstance(dataset, str | Path):
        raise InputError('rows in memory have no name for the run and its registered model; say name="..."')
    source = in_memory.model_source(model, tokenizer)
    return words.of(source, in_memory.dataset_source(dataset, Path(asked.runs_dir)), settings, overrides)


def _opened(config: RunConfig, progress: bool | None) -> AbstractContextManager[Run]:
    import sys

    shown = sys.stdout.isatty() if progress is None else progress
    observers: list[Observer] = [Terminal()] if shown else []
    return opened(config, observers=observers)
