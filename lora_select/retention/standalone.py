"""`retain` on anybody's adapter: read its rows, filter, judge, and leave plain files in a new folder."""

import dataclasses
import difflib
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_select import models, records
from lora_select.data.intake import intake, read_canonical
from lora_select.data.labels.tokenize import Tokenized, tokenize
from lora_select.data.reading import formats, readers
from lora_select.data.reading.source_files import list_source
from lora_select.errors import InputError, require
from lora_select.evaluation.model_losses import label_counts
from lora_select.records import BaseModel, Retention
from lora_select.retention import forms, plot
from lora_select.retention.bench import Progress
from lora_select.retention.one_adapter import ADAPTER, RAW_ADAPTER, retain_adapter
from lora_select.retention.references import CODE, EMBEDDED, PROSE, SELF
from lora_select.retention.settings import LEAST_SELECTION, RetentionSettings, TaskRows, selection_rows, split_rows

RECORD, FRONTIER = "retention.json", "frontier.png"


def retain(
    adapter: str | Path,
    data: str,
    out: str | Path,
    *,
    base: str | None = None,
    references: Sequence[str] = (PROSE,),
    judges: Sequence[str] = (),
    tolerance: str | None = None,
    quantize: str | None = None,
    max_length: int = 1024,
    max_rows: int | None = 2000,
    tokens: int = RetentionSettings.task_tokens,
    prior: float = RetentionSettings.prior,
    max_error: float = RetentionSettings.max_error,
    keep_moments: bool = False,
    earlier: Sequence[str | Path] = (),
    seed: int = 0,
    kept: str | None = None,
    evaluation: str | None = None,
    progress: Progress = lambda *_: None,
    **settings: Any,
) -> Retention:
    """Filter an adapter that was trained anywhere, so that it keeps its task and gives back what the base model knew.

    Args:
        adapter: a PEFT folder, or a run's folder: of it what training left, before the run's own filter.
        data: the rows that it was trained on, or others of the task: a file, a folder, a hub id or `sample:NAME`.
        out: a new folder; gets `adapter` (what to serve), `adapter-raw`, `retention.json` and `frontier.png`.
        base: the base model; by default what the adapter's config names.
        references: sets that give second moments: `prose`, `code`, `self`, files or hub ids.
        judges: sets that only judge; by default one of the embedded ones that gives nothing.
        tolerance: largest rise of the task's loss: `1%`, nats, or None for 1 %.
        quantize: `nf4` or `int8`, how the base model is held.
        max_length: tokens of a row.
        max_rows: rows of the task that are read at most.
        tokens: of the task and of reference text, for the second moments.
        prior: isotropic share of the reference's second moments; shrinks what no reference text used.
        max_error: the largest share of its norm that an update which is no LoRA may lose where it is written as one.
        keep_moments: also write the task's second moments, for the next training's filter.
        earlier: files that `keep_moments` wrote for earlier trainings of the same base; their tasks are kept as reference text is.
        seed: of splits and samples.
        kept: a file of rows that were kept from training; they choose the strength, and all of `data` gives second moments.
        evaluation: with `kept`, a file of rows that only judge.
        progress: called with (done, total, what).
        settings: other fields of `lora_select.retention.settings.RetentionSettings`; they go before `tokens`.

    Returns:
        The record, as written to `out/retention.json`.

    Raises:
        InputError: anything that cannot be used, named with the way out; nothing is written then.
    """
    known = {field.name for field in dataclasses.fields(RetentionSettings)}
    if unknown := sorted(set(settings) - known):
        near = difflib.get_close_matches(unknown[0], known, n=1)
        raise InputError(f"`{unknown[0]}` is no setting of `retain`" + (f"; did you mean `{near[0]}`?" if near else ""))
    folder, target = adapter_folder(Path(adapter)), Path(out)
    config = forms.config_of(folder)
    source = base or config.get("base_model_name_or_path")
    if not source:
        raise InputError(f"{folder} does not name its base model; name it with --base")
    if target.exists() and any(target.iterdir()):
        raise InputError(f"{target} exists and is not empty; name a new folder with --out")
    require("matplotlib", "report", "the figure of `retain`")
    if evaluation and not kept:
        raise InputError(
            "`evaluation` is of no use without `kept`: without it lora-select parts `data` by itself; name both"
        )
    counts: dict[str, Any] = {"task_tokens": tokens, "reference_tokens": tokens} | settings
    told = RetentionSettings(
        references=tuple(references),
        judges=tuple(judges) or default_judges(references),
        tolerance=tolerance,
        prior=prior,
        max_error=max_error,
        keep_moments=keep_moments,
        earlier=tuple(earlier),
        quantize=quantize,
        seed=seed,
        **counts,
    )
    model = models.resolve(source)
    rows = (
        read_parts((data, kept, evaluation), model, max_length)
        if kept
        else read_rows(data, model, max_length=max_length, max_rows=max_rows, seed=seed)
    )
    with tempfile.TemporaryDirectory(dir=_parent(target)) as working:
        made = retain_adapter(model, folder, rows, told, Path(working), progress=progress)
        records.write(Path(working) / RECORD, made)
        plot.frontier(made, Path(working) / FRONTIER)
        target.mkdir(parents=True, exist_ok=True)
        for item in Path(working).iterdir():
            item.rename(target / item.name)
    return made


def adapter_folder(folder: Path) -> Path:
    """A PEFT folder as it is; of a run what training left, before a filter of the run's own."""
    found = (folder / name for name in (RAW_ADAPTER, ADAPTER) if (folder / name / forms.CONFIG).is_file())
    return next(found, folder)


def _parent(target: Path) -> Path:
    """The nearest folder above `target` that exists: results are moved there, so it must be on the same disk."""
    return next(place for place in target.resolve().parents if place.is_dir())


def default_judges(references: Sequence[str]) -> tuple[str, ...]:
    """An embedded set that gives nothing: code, else prose, else the model's own text.

    Raises:
        InputError: all three give.
    """
    free = [name for name in (CODE, PROSE, SELF) if name not in references]
    if not free:
        raise InputError(f"{', '.join(EMBEDDED)} all give second moments; name a set that only judges with --judge")
    return (free[0],)


def read_parts(files: tuple[str, str, str | None], base: BaseModel, max_length: int) -> TaskRows:
    """The task's rows in three sources: what was trained on, what was kept from it, and what only judges.

    Raises:
        InputError: a file or a row of it cannot be read, or a row has no form that is known; fewer than 8 rows would choose.
    """
    tokenizer = models.load_tokenizer(base.path)
    parts = [list(token_rows(file, _values(file), tokenizer, max_length)) if file else [] for file in files]
    given, chosen, judging = ([row for made in part for row in made.rows] for part in parts)
    if len(chosen) < LEAST_SELECTION:
        raise InputError(
            f"`kept` {files[1]} has {len(chosen)} rows with an answer and needs {LEAST_SELECTION}; leave it out"
        )
    return TaskRows(given, chosen, judging, _counts([made for part in parts for made in part], max_length))


def _values(source: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a file or folder as they are read everywhere; one that cannot be read is named."""
    for file in list_source(source).files:
        for row in readers.read_rows(file):
            if row.fault:
                raise InputError(f"{row.file}, line {row.line}: {row.fault}; mend it or leave it out")
            yield row.values


def _counts(every: Sequence[Tokenized], max_length: int) -> tuple[str, ...]:
    """Rows that are cut, and those that are not used, in sentences."""
    cut, empty = sum(made.length > max_length for made in every), sum(not made.rows for made in every)
    return (
        *([f"{cut} task rows are longer than {max_length} tokens and are cut; raise --max-length"] if cut else []),
        *([f"{empty} task rows have no label token and are not used"] if empty else []),
    )


def token_rows(name: str, rows: Iterable[Mapping[str, Any]], tokenizer: Any, max_length: int) -> Iterator[Tokenized]:
    """Each row tokenised, in any form that lora-select reads.

    Raises:
        InputError: a row has no form that is known; names it.
    """
    for index, row in enumerate(rows):
        try:
            yield tokenize(f"{name}-{index}", formats.convert(formats.detect(row), dict(row)), tokenizer, max_length)
        except ValueError as error:
            raise InputError(f"`{name}` row {index}: {error}") from error


def read_rows(source: str, base: BaseModel, *, max_length: int, max_rows: int | None, seed: int) -> TaskRows:
    """The task's rows in three parts by prompt: a tenth judges, a fifth of the others chooses, the rest gives second moments.

    Raises:
        InputError: too few usable rows.
    """
    tokenizer = models.load_tokenizer(base.path)
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        dataset = intake(
            source=source, name="task", folder=place, max_train_rows=max_rows, max_eval_rows=64, split_seed=seed
        )
        found = [
            [tokenize(row_id, row, tokenizer, max_length) for row_id, row in read_canonical(place / file.path)]
            for file in (dataset.train_file, dataset.eval_file)
        ]
    parts = [[row for made in part for row in made.rows] for part in found]
    notes = [f"{item.count} task rows left out: {item.reason}" for item in dataset.rejected]
    notes += _counts([made for part in found for made in part], max_length)
    given = split_rows(parts[0], selection_rows(label_counts(parts[0])), seed, parts[1])
    notes.append(
        "whether the adapter was trained on the rows that choose the strength is not known; if it was, their rise is too small"
    )
    return dataclasses.replace(given, notes=tuple(notes))
