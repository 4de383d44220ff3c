"""The one door: an adapter, its base, its task's rows and reference text in; the adapter that should be served and the evidence out."""

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError, WorldError
from lora_select.records import (
    BaseModel,
    ReferenceJudgement,
    Retention,
    RetentionDecision,
    UnitLosses,
    file_ref,
    sha256_file,
)
from lora_select.retention import forms, measure, path
from lora_select.retention.bench import Bench, Progress
from lora_select.retention.decide import FILTER, RAW, SCALE, decide
from lora_select.retention.forms import Form, Update
from lora_select.retention.measure import Judged
from lora_select.retention.moments import Moments, save
from lora_select.retention.references import ReferenceSet, Sizes, gather, refuse_leaks
from lora_select.retention.settings import RetentionSettings, TaskRows

ADAPTER, RAW_ADAPTER, MOMENTS = "adapter", "adapter-raw", "moments.safetensors"
ROUNDING = 2e-2
"""Of an update that is written in bfloat16, relative."""


def retain_adapter(
    base: BaseModel,
    adapter: Path,
    rows: TaskRows,
    settings: RetentionSettings,
    folder: Path,
    *,
    others: Mapping[str, Path] | None = None,
    cache: Path | None = None,
    progress: Progress = lambda *_: None,
) -> Retention:
    """Filter, decide, judge, write: `folder/adapter` is what should be served, `folder/adapter-raw` what training left.

    Args:
        base: the pristine base model.
        adapter: a PEFT folder of any kind.
        rows: the task's rows.
        settings: see :class:`RetentionSettings`.
        folder: existing; gets the two adapters.
        others: PEFT folders by name (`champion`, `plain_lora`) that are judged on the same rows and text; they decide nothing.
        cache: where text that the base model sampled is kept (default: the product's cache).
        progress: called with (done, total, what).

    Raises:
        InputError: an adapter of another base or of a kind that cannot be filtered, unusable rows or references.
    """
    began, spent = time.monotonic(), time.process_time()
    tolerance = path.parse_tolerance(settings.tolerance)
    tokenizer = models.load_tokenizer(base.path)
    pad_id = models.pad_id(tokenizer)

    def fresh() -> Any:
        return models.load_model(base.path, dtype=settings.dtype, device=settings.device, quantize=settings.quantize)

    forms.config_of(adapter)
    model = fresh()
    form = forms.read(adapter, model, load_base=fresh)
    sets = gather(
        settings.references, settings.judges, base, tokenizer,
        sizes=Sizes(settings.reference_tokens, settings.judging_units), seed=settings.seed, model=lambda: model,
        cache=cache or models.cache_folder(),
    )  # fmt: skip
    refuse_leaks(sets, [*rows.moments, *rows.selection, *rows.evaluation])
    bench = Bench(model, form, pad_id, settings, progress)
    pairs, layers, notes, sums = bench.moments(rows.moments, sets)
    raw = bench.losses(form.updates, rows.selection)
    evidence, arms, written = bench.search(pairs, layers, raw, rows.selection, tolerance)
    deciding = {one.name: bench.judge(arms, one.deciding, f"text that decides: {one.name}") for one in sets}
    evidence = dataclasses.replace(
        evidence,
        references={
            name: UnitLosses(found.labels, found.base, {arm: found.arms[arm] for arm in arms})
            for name, found in deciding.items()
        },
    )
    decision = decide(evidence)
    served = _write(form, arms, decision, folder, base.source, written, model)
    kept = None
    if settings.keep_moments:
        save(sums, folder / MOMENTS)
        kept = file_ref(folder / MOMENTS, folder)
    arms |= _rivals(others or {}, model, fresh)
    judged = {one.name: bench.judge(arms, one.judging, f"text that judges: {one.name}") for one in sets}
    task = _task(bench, arms, rows.evaluation, settings.seed)
    files = tuple(file_ref(file, folder) for file in sorted((folder / ADAPTER).iterdir()))
    return Retention(
        adapter_digest=adapter_digest(adapter),
        base_digest=base.digest,
        directory=ADAPTER,
        files=files,
        digest=adapter_digest(folder / ADAPTER),
        evidence=evidence,
        decision=decision,
        task=task,
        references=tuple(_judgement(one, judged[one.name], settings.seed) for one in sets),
        layers=bench.layers(pairs, layers, arms.get(FILTER, form.updates), sums),
        left_alone=sums.unseen,
        form=form.kind,
        method=served.method,
        rank=served.rank,
        error=served.error,
        ridge=settings.ridge,
        prior=settings.prior,
        task_tokens=sums.tokens,
        reference_tokens=sum(len(row.input_ids) for one in sets for row in one.give),
        moments_file=kept,
        seconds=round(time.monotonic() - began, 1),
        processor_seconds=round(time.process_time() - spent, 1),
        notes=(
            *rows.notes,
            *notes,
            *(f"{one.name}: {note}" for one in sets for note in one.notes),
            *_notes(form, sums, rows, base),
        ),
    )


def _rivals(others: Mapping[str, Path], model: Any, fresh: Callable[[], Any]) -> dict[str, Mapping[str, Update]]:
    taken = sorted({"base", RAW, SCALE, FILTER} & set(others))
    if taken:
        raise InputError(f"{taken[0]!r} names an arm of the adapter itself; give the other adapter another name")
    return {name: forms.read(folder, model, load_base=fresh).updates for name, folder in others.items()}


def adapter_digest(folder: Path) -> str:
    """SHA-256 over the digests of the adapter's weights and config."""
    lines = [f"{name}:{sha256_file(folder / name)}" for name in (forms.CONFIG, forms.WEIGHTS)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _write(
    form: Form,
    arms: Mapping[str, Mapping[str, Update]],
    decision: RetentionDecision,
    folder: Path,
    source: str,
    written: Mapping[str, forms.Written],
    model: Any,
) -> forms.Written:
    for name in (ADAPTER, RAW_ADAPTER):
        shutil.rmtree(folder / name, ignore_errors=True)
    forms.copy(form, folder / RAW_ADAPTER)
    if decision.choice == "none":
        forms.copy(form, folder / ADAPTER)
        return forms.Written(None, 0.0, "as trained")
    made = written[decision.choice]
    forms.write(form, arms[decision.choice], folder / ADAPTER, source, made)
    _check_written(folder / ADAPTER, arms[decision.choice], model)
    return made


def _check_written(folder: Path, wanted: Mapping[str, Update], model: Any) -> None:
    """What the folder holds is what was measured, seen through a random input of each layer.

    Raises:
        WorldError: a layer differs by more than the rounding of its file.
    """
    import torch

    held = forms.read(folder, model, load_base=lambda: model).updates
    generator = torch.Generator().manual_seed(0)
    for name, update in wanted.items():
        x = torch.randn(update.a.shape[1], generator=generator)
        expected, found = (_times(one, x) for one in (update, held[name]))
        if float((expected - found).norm()) > ROUNDING * float(expected.norm()):
            raise WorldError(
                f"{folder} does not hold what was measured: {name} differs; the disk may be full or the file damaged"
            )


def _times(update: Update, x: Any) -> Any:
    seen = update.a.float().cpu() @ x
    return seen if update.b is None else update.b.float().cpu() @ seen


def _task(bench: Bench, arms: measure.Arms, rows: Sequence[TokenRow], seed: int) -> dict[str, Any]:
    """Each arm against the adapter as trained on rows that chose nothing."""
    if len(rows) < 2:
        return {}
    labels = measure.labels_of(rows)
    found = {name: bench.losses(updates, rows) for name, updates in (("base", {}), *arms.items())}
    return {name: measure.comparison(found[RAW], values, labels, seed=seed) for name, values in found.items()}


def _judgement(one: ReferenceSet, judged: Judged, seed: int) -> ReferenceJudgement:
    rise = {
        arm: measure.comparison(judged.base, values, judged.labels, seed=seed) for arm, values in judged.arms.items()
    }
    tokens = sum(judged.labels)
    return ReferenceJudgement(
        name=one.name,
        kind=one.kind,
        gave=bool(one.give),
        digest=one.digest,
        base_loss=sum(judged.base) / tokens,
        rise=rise,
        kl={arm: max(0.0, sum(values) / tokens) for arm, values in judged.kl.items()},
    )


def _notes(form: Form, sums: Moments, rows: TaskRows, base: BaseModel) -> list[str]:
    found = []
    named = str(form.config.get("base_model_name_or_path") or "")
    if named and Path(named).name.lower() not in {Path(base.source).name.lower(), Path(base.path).name.lower()}:
        found.append(
            f"the adapter names {named} as its base model, {base.source} was used: their layers have the same shapes"
        )
    if form.kind != forms.AS_TRAINED:
        found.append(f"the adapter is no plain LoRA; its update was read as {form.kind}")
    if sums.unseen:
        found.append(f"{len(sums.unseen)} layers are left alone: {next(iter(sums.unseen.values()))}")
    if not rows.evaluation:
        found.append("no rows were left to judge the task: its loss is known on the rows that chose the strength alone")
    return found
