"""The one door: an adapter, its base, its task's rows and reference text in; the adapter that should be served and the evidence out."""

import dataclasses
import functools
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError, WorldError
from lora_select.evaluation.evaluate import LOSS_UNIT, comparison
from lora_select.evaluation.model_losses import label_counts
from lora_select.evaluation.wording import SHARE_UNIT
from lora_select.records import (
    BaseModel,
    FileRef,
    MetricComparison,
    ReferenceJudgement,
    Retention,
    RetentionDecision,
    RetentionEvidence,
    UnitLosses,
    file_ref,
    sha256_file,
)
from lora_select.records.retention import IN_BASE, KEPT_MOMENTS
from lora_select.retention import form_losses, forms, path
from lora_select.retention.bench import Bench, Progress, kept_of_layers, moved_of_earlier, spreads
from lora_select.retention.decide import FILTER, RAW, SCALE, decide, harmed
from lora_select.retention.form_losses import Judged
from lora_select.retention.forms import Form, Update
from lora_select.retention.moments import Moments, load, save
from lora_select.retention.references import USER, ReferenceSet, Sizes, gather, refuse_leaks
from lora_select.retention.settings import JUDGING_ROWS, RetentionSettings, TaskRows
from lora_select.training import reload_check
from lora_select.training.job import REFERENCE_LOGITS

ADAPTER, RAW_ADAPTER = "adapter", "adapter-raw"
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
    reference_logits: Path | None = None,
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
        others: PEFT folders by name (`champion`, `plain_lora`) that are judged on the same text; they decide nothing.
        reference_logits: the training's logits for its reload check; the adapter that should be served writes its own on the same tokens.
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
    earlier = [load(file) for file in earlier_files(base, settings)]
    pairs, layers, notes, sums = bench.moments(rows.moments, sets, earlier)
    trained = spreads(pairs, layers, form.updates)
    evidence, arms, written = bench.search(pairs, layers, trained, rows.selection, tolerance)
    deciding = {
        one.name: bench.judge(arms, one.deciding, "decide", one.name, divergence=False) for one in sets if one.give
    }
    evidence = dataclasses.replace(
        evidence,
        references={
            name: UnitLosses(found.labels, found.base, {arm: found.arms[arm] for arm in arms})
            for name, found in deciding.items()
        },
        earlier=moved_of_earlier(arms, earlier),
    )
    decision = decide(evidence)
    served = _write(form, arms, decision, folder, base.source, written, model)
    logits = _logits(model, folder, reference_logits) if reference_logits is not None else None
    chosen = RAW if decision.choice == "none" else decision.choice
    kept = spreads(pairs, layers, arms[chosen])
    if settings.keep_moments:
        save(functools.reduce(Moments.joined, earlier, sums), folder / KEPT_MOMENTS)
    last = {name: arms[name] for name in (RAW, chosen)}
    task = _task(bench, last, rows.evaluation[:JUDGING_ROWS], settings.seed)
    last |= _rivals(others or {}, model, fresh)
    judged = {one.name: bench.judge(last, one.judging, "judge", one.name, divergence=True) for one in sets}
    answers = {one.name: bench.exact(last, one.judging, tokenizer, one.name) for one in sets if one.kind == USER}
    files = tuple(file_ref(file, folder) for file in sorted((folder / ADAPTER).iterdir()))
    return Retention(
        adapter_digest=sha256_file(adapter / forms.WEIGHTS),
        base_digest=base.digest,
        directory=ADAPTER,
        files=files,
        digest=sha256_file(folder / ADAPTER / forms.WEIGHTS),
        evidence=evidence,
        decision=decision,
        task=task,
        references=tuple(_judgement(one, judged[one.name], answers.get(one.name, {}), settings.seed) for one in sets),
        layers=kept_of_layers(trained, kept, sums),
        left_alone=sums.unseen,
        form=form.kind,
        method=served.method,
        rank=served.rank,
        error=served.error,
        ridge=settings.ridge,
        prior=settings.prior,
        task_tokens=sums.tokens,
        reference_tokens=sum(len(row.input_ids) for one in sets for row in one.give),
        moments_file=file_ref(folder / KEPT_MOMENTS, folder) if settings.keep_moments else None,
        logits_file=logits,
        forward_tokens=dict(bench.forward),
        seconds=round(time.monotonic() - began, 1),
        processor_seconds=round(time.process_time() - spent, 1),
        notes=(
            *rows.notes,
            *notes,
            *(f"{one.name}: {note}" for one in sets for note in one.notes),
            *_notes(form, sums, rows, base),
            *_few_labels(evidence, rows),
            *(
                [f"{len(earlier)} files of earlier tasks' second moments were kept as reference text is"]
                if earlier
                else []
            ),
        ),
    )


def earlier_files(base: BaseModel, settings: RetentionSettings) -> list[Path]:
    """Second moments of earlier tasks: those that are named, and those that came with a base which earlier adapters were merged into."""
    own = Path(base.path) / IN_BASE
    return [*map(Path, settings.earlier), *([own] if own.is_file() else [])]


def _rivals(others: Mapping[str, Path], model: Any, fresh: Callable[[], Any]) -> dict[str, Mapping[str, Update]]:
    taken = sorted({"base", RAW, SCALE, FILTER} & set(others))
    if taken:
        raise InputError(f"{taken[0]!r} names an arm of the adapter itself; give the other adapter another name")
    return {name: forms.read(folder, model, load_base=fresh).updates for name, folder in others.items()}


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


def _logits(model: Any, folder: Path, reference: Path) -> FileRef:
    """What the adapter in the folder, put on the base by hooks, answers on the tokens of `reference`: for the check in a new process."""
    from safetensors.torch import load_file, save_file

    asked = load_file(reference)
    with forms.applied(model, forms.read(folder / ADAPTER, model, load_base=lambda: model).updates):
        made = reload_check.logits_at(model, asked)
    file = folder / REFERENCE_LOGITS
    save_file(asked | {f"logits.{index}": values.contiguous() for index, values in enumerate(made)}, file)
    return file_ref(file, folder)


def _times(update: Update, x: Any) -> Any:
    seen = update.a.float().cpu() @ x
    return seen if update.b is None else update.b.float().cpu() @ seen


def _task(bench: Bench, arms: form_losses.Arms, rows: Sequence[TokenRow], seed: int) -> dict[str, MetricComparison]:
    """Each arm against the adapter as trained on rows that chose nothing."""
    if len(rows) < 2:
        return {}
    found = {name: bench.losses(updates, rows, "judge") for name, updates in arms.items()}
    return {name: _compared(found[RAW], values, label_counts(rows), seed) for name, values in found.items()}


def _compared(before: Sequence[float], after: Sequence[float], labels: Sequence[int], seed: int) -> MetricComparison:
    return comparison(before, after, labels, unit=LOSS_UNIT, better="lower", seed=seed)


def _judgement(
    one: ReferenceSet, judged: Judged, answers: Mapping[str, Sequence[float]], seed: int
) -> ReferenceJudgement:
    rise = {arm: _compared(judged.base, values, judged.labels, seed) for arm, values in judged.arms.items()}
    tokens = sum(judged.labels)
    return ReferenceJudgement(
        name=one.name,
        kind=one.kind,
        gave=bool(one.give),
        digest=one.digest,
        base_loss=sum(judged.base) / tokens,
        rise=rise,
        kl={arm: max(0.0, sum(values) / tokens) for arm, values in judged.kl.items()},
        exact={
            arm: comparison(answers["base"], values, None, unit=SHARE_UNIT, better="higher", seed=seed)
            for arm, values in answers.items()
            if arm != "base"
        },
    )


def _few_labels(evidence: RetentionEvidence, rows: TaskRows) -> list[str]:
    """That the rows that chose had too few label tokens to tell, where the adapter did harm and nothing was filtered for that."""
    labels = sum(label_counts(rows.selection))
    wanted = path.labels_wanted(evidence.filter_path, labels)
    if wanted is None or path.chosen(evidence.filter_path) is not None or not harmed(evidence):
        return []
    return [
        f"the {len(rows.selection)} rows that chose hold {labels:,} label tokens, too few to tell what the filter costs; some {wanted:,} would tell: "
        "keep more rows from the training (`training.validation`), name some (`lora-select retain --kept`), or allow more "
        "(`retention.tolerance`)"
    ]


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
