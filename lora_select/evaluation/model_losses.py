"""One model measured, as it is or stored in fewer bits: its loss on every row and reference chunk, its answers; kept in a file when it is done."""

import gc
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, final

from lora_select import models
from lora_select.data.labels.tokens import TokenRow, collate, label_loss
from lora_select.evaluation import harness, metrics
from lora_select.evaluation.harness import TaskScores
from lora_select.evaluation.material import EvaluationOptions, Material
from lora_select.models import rounding
from lora_select.records import BaseModel, DatasetProfile, finite, sha256_file, write_text
from lora_select.records.digests import key_of

Progress = Callable[[int, int, str], None]
BASE, MERGED = "base_", "merged_"
"""Begin the names of the two arms of a form."""


@final
@dataclass(frozen=True)
class Measured:
    """One model's numbers: summed loss in nats per row and per reference chunk, its answers to the questions, its task scores."""

    losses: tuple[float, ...]
    reference: tuple[float, ...]
    answers: tuple[str, ...]
    tasks: Mapping[str, TaskScores] = field(default_factory=dict)


UNMEASURED = Measured((), (), ())


def measure(
    base: BaseModel,
    adapter: Path | None,
    material: Material,
    options: EvaluationOptions,
    note: Path,
    report: Progress,
    known: Measured = UNMEASURED,
) -> Measured:
    """Measure the base model, or the adapter on a freshly loaded base; read `note` when the same was measured before.

    The base is loaded anew each time: a start that changes the base's weights (PiSSA) cannot leak into the next model.
    `known` is what was measured of it before: summed losses of the first rows, and the answers, all or none.

    Raises:
        RuntimeError: a loss is not finite.
    """
    key = _key(base, adapter, material, options)
    kept = _read(note, key)
    if kept is not None:
        return kept
    model = _load(base, adapter, options)
    total = len(material.rows) + len(material.reference) + len(material.questions)
    rest = material.rows[len(known.losses) :]
    measured_now = row_losses(
        model,
        rest,
        material.pad_id,
        options.batch_size,
        options.device,
        lambda n: report(len(known.losses) + n, total, "loss"),
    )
    losses = [*known.losses, *measured_now]
    done = len(losses)
    reference = row_losses(
        model,
        material.reference,
        material.pad_id,
        options.batch_size,
        options.device,
        lambda n: report(done + n, total, "reference loss"),
    )
    answers = known.answers or _answers(
        model, base, material, options, lambda n, _, what: report(done + len(reference) + n, total, what)
    )
    tasks = _tasks(model, base, options)
    measured = Measured(tuple(losses), tuple(reference), tuple(answers), tasks)
    write_text(note, json.dumps({"key": key, **asdict(measured)}, ensure_ascii=False) + "\n")
    del model
    gc.collect()
    return measured


def arms(forms: Sequence[str]) -> list[str]:
    """Names of the arms, in the order in which they are measured.

    >>> arms(["nf4"])
    ['base_nf4', 'merged_nf4']
    """
    return [f"{who}{form}" for form in forms for who in (BASE, MERGED)]


def measure_arms(
    base: BaseModel,
    adapter: Path,
    material: Material,
    options: EvaluationOptions,
    folder: Path,
    report_of: Callable[[str], Progress],
) -> dict[str, Measured]:
    """Every arm of `options.quantized`: the merged model on all of the material, the base on the rows' loss alone.

    Args:
        base: the base model.
        adapter: a PEFT folder.
        material: what is measured on.
        options: `quantized` names the forms.
        folder: where `<arm>.json` goes.
        report_of: who is told of the arm of a name.

    Raises:
        InputError: PEFT cannot merge the adapter.
        RuntimeError: a loss is not finite.
    """
    rows_alone = replace(material, reference=(), questions=())
    measured = {}
    with _merged(base, adapter, folder, wanted=bool(options.quantized)) as whole:
        for form in options.quantized:
            held = replace(options, quantize=form)
            for name, model, asked, shown in (
                (f"{BASE}{form}", base, replace(held, tasks=(), task_folder="."), rows_alone),
                (f"{MERGED}{form}", whole, held, material),
            ):
                measured[name] = measure(model, None, shown, asked, folder / f"{name}.json", report_of(name))
    return measured


@contextmanager
def _merged(base: BaseModel, adapter: Path, folder: Path, *, wanted: bool) -> Iterator[BaseModel]:
    """The base with the adapter merged into it in float32, as a model of its own while it is needed; the base itself where nothing is wanted.

    Raises:
        InputError: PEFT cannot merge it.
    """
    if not wanted:
        yield base
        return
    digests = [sha256_file(file) for file in sorted(adapter.glob("adapter_*"))]
    with tempfile.TemporaryDirectory(dir=folder, prefix=".merged-") as place:
        models.write_merged(models.with_adapter(models.load_model(base.path), adapter), base.path, Path(place))
        yield replace(base, path=place, digest=key_of({"base": base.digest, "merged": digests}))


def _key(base: BaseModel, adapter: Path | None, material: Material, options: EvaluationOptions) -> str:
    """What the numbers depend on: an adapter of the same name with other weights is another adapter."""
    weights = [] if adapter is None else sorted(sha256_file(file) for file in adapter.glob("adapter_*"))
    rows = [[row.row_id, row.input_ids] for row in (*material.rows, *material.reference)]
    prompts = [question.prompt for question in material.questions]
    files = [sha256_file(file) for file in sorted(Path(options.task_folder).glob("*"))] if options.tasks else []
    kept = {"base": base.digest, "adapter": weights, "rows": rows, "prompts": prompts, "tasks": files}
    asked = {
        name: value
        for name, value in asdict(options).items()
        if name not in ("metrics", "tasks", "quantized", "few_shot")
    }
    return key_of({**asked, **kept, "names": list(options.tasks)})


def _read(note: Path, key: str) -> Measured | None:
    if not note.is_file():
        return None
    values = json.loads(note.read_text(encoding="utf-8"))
    return from_note(note) if values["key"] == key else None


def from_note(note: Path) -> Measured:
    """What :func:`measure` kept in a file."""
    values = json.loads(note.read_text(encoding="utf-8"))
    tasks = {name: TaskScores(tuple(one["values"]), one["better"]) for name, one in values["tasks"].items()}
    return Measured(tuple(values["losses"]), tuple(values["reference"]), tuple(values["answers"]), tasks)


def of_profile(profile: DatasetProfile, options: EvaluationOptions) -> Measured:
    """What the profile measured of the base, where the evaluation would measure the same; nothing else."""
    same = options.quantize is None and (options.dtype, options.device) == ("float32", profile.base_device)
    return Measured(profile.base_losses, (), ()) if same else UNMEASURED


def _tasks(model: Any, base: BaseModel, options: EvaluationOptions) -> Mapping[str, TaskScores]:
    if not options.tasks:
        return {}
    return harness.run(
        model,
        models.load_tokenizer(base.path),
        options.tasks,
        Path(options.task_folder),
        limit=options.task_limit,
        batch_size=options.batch_size,
        longest=base.max_position_embeddings,
    )


def _load(base: BaseModel, adapter: Path | None, options: EvaluationOptions) -> Any:
    rounded = options.quantize in rounding.GGUF_FORMS
    held = None if rounded else options.quantize
    model = models.load_model(base.path, dtype=options.dtype, device=options.device, quantize=held)
    if rounded:
        rounding.round_weights(model, str(options.quantize))
    return model if adapter is None else models.with_adapter(model, adapter)


def _answers(
    model: Any, base: BaseModel, material: Material, options: EvaluationOptions, report: Progress
) -> Sequence[str]:
    if not material.questions:
        return []
    return metrics.generate(
        model,
        models.load_tokenizer(base.path),
        [question.prompt for question in material.questions],
        max_new_tokens=options.max_new_tokens,
        batch_size=options.batch_size,
        progress=report,
    )


def summed_losses(
    model: Any,
    rows: Sequence[TokenRow],
    pad_id: int,
    batch_size: int,
    device: str,
    report: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """Summed loss of each row in nats, in the order of the rows, finite or not; batched by length.

    Whether gradients are kept is the caller's to say.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    losses = [0.0] * len(rows)
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[index] for index in chosen], pad_id)
        nll, _ = label_loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
        for index, value in zip(chosen, nll.tolist(), strict=True):
            losses[index] = value
        report(min(start + batch_size, len(order)))
    return losses


def label_counts(rows: Sequence[TokenRow]) -> tuple[int, ...]:
    """Label tokens of each row."""
    return tuple(sum(row.label_mask) for row in rows)


def row_losses(
    model: Any,
    rows: Sequence[TokenRow],
    pad_id: int,
    batch_size: int,
    device: str,
    report: Callable[[int], None] = lambda _: None,
) -> list[float]:
    """:func:`summed_losses` of a model that is only measured.

    Raises:
        RuntimeError: a loss is not finite; names the row.
    """
    import torch

    with torch.inference_mode():
        losses = summed_losses(model, rows, pad_id, batch_size, device, report)
    return [finite(loss, f"the loss of row {row.row_id}") for loss, row in zip(losses, rows, strict=True)]
