"""The one door: an adapter, its base, its task's rows and reference text in; the adapter that should be served and the evidence out."""

import dataclasses
import hashlib
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select import models
from lora_select.data.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.records import (
    BaseModel,
    LayerRetention,
    ReferenceJudgement,
    Retention,
    RetentionDecision,
    RetentionEvidence,
    Tolerance,
    UnitLosses,
    file_ref,
    sha256_file,
)
from lora_select.retention import filter as filtering
from lora_select.retention import forms, measure, path
from lora_select.retention.decide import FILTER, RAW, SCALE, decide
from lora_select.retention.filter import Pair, Spread
from lora_select.retention.forms import Form, Update
from lora_select.retention.measure import Judged
from lora_select.retention.moments import EXACT_WIDTH, SKETCH_COLUMNS, Moments, load, save, stream
from lora_select.retention.references import CODE, PROSE, SELF, ReferenceSet, Sizes, gather, refuse_leaks

Progress = Callable[[int, int, str], None]
ADAPTER, RAW_ADAPTER, MOMENTS = "adapter", "adapter-raw", "moments.safetensors"
SELECTION_SHARE, MOST_SELECTION, LEAST_SELECTION = 0.2, 48, 8


@final
@dataclass(frozen=True)
class RetentionSettings:
    """How an adapter is filtered and judged.

    `references` give second moments and judge on other text; `judges` only judge. `tolerance`: `1%` of the loss, nats, or None for one
    paired standard error and at most 1 %. `prior` is the isotropic share of Zr. `task_tokens` and `reference_tokens` bound the rows that moments
    are taken from. `keep_moments` writes the task's second moments beside the adapter, for the next training's filter; `earlier` are such files.
    """

    references: tuple[str, ...] = (PROSE, SELF)
    judges: tuple[str, ...] = (CODE,)
    tolerance: str | None = None
    prior: float = 0.0
    ridge: float = filtering.RIDGE
    task_tokens: int = 8192
    reference_tokens: int = 8192
    judging_units: int = 24
    max_error: float = forms.MAX_ERROR
    exact_width: int = EXACT_WIDTH
    sketch_columns: int = SKETCH_COLUMNS
    keep_moments: bool = False
    earlier: tuple[Path, ...] = ()
    dtype: str = "float32"
    device: str = "cpu"
    quantize: str | None = None
    seed: int = 0


@final
@dataclass(frozen=True)
class TaskRows:
    """The task's rows in three parts: those that give second moments, those that choose the strength, those that judge (may be none)."""

    moments: Sequence[TokenRow]
    selection: Sequence[TokenRow]
    evaluation: Sequence[TokenRow] = ()


def split_selection(rows: Sequence[TokenRow], seed: int) -> tuple[list[TokenRow], list[TokenRow]]:
    """Rows to train on, and selection rows that are kept from training: a fifth, at most 48; the same for the same rows and seed.

    Raises:
        InputError: fewer than 8 would be kept.
    """
    shuffled = sorted(rows, key=lambda row: row.row_id)
    random.Random(f"retention:{seed}").shuffle(shuffled)
    count = min(MOST_SELECTION, int(SELECTION_SHARE * len(shuffled)))
    if count < LEAST_SELECTION:
        raise InputError(
            f"the filter's strength is chosen on a fifth of the rows and needs {LEAST_SELECTION} of them; {len(rows)} rows are too few: bring "
            "more, or set `retention.mode` to off"
        )
    return shuffled[count:], shuffled[:count]


def retain_adapter(
    base: BaseModel,
    adapter: Path,
    rows: TaskRows,
    settings: RetentionSettings,
    folder: Path,
    *,
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
    refuse_leaks(sets, [*rows.moments, *rows.selection])
    bench = _Bench(model, form, pad_id, settings, progress)
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
    served = _write(form, arms, decision, folder, base.source, written)
    kept = None
    if settings.keep_moments:
        save(sums, folder / MOMENTS)
        kept = file_ref(folder / MOMENTS, folder)
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
        notes=(*notes, *(f"{one.name}: {note}" for one in sets for note in one.notes), *_notes(form, sums, rows)),
    )


def adapter_digest(folder: Path) -> str:
    """SHA-256 over the digests of the adapter's weights and config."""
    lines = [f"{name}:{sha256_file(folder / name)}" for name in (forms.CONFIG, forms.WEIGHTS)]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@final
class _Bench:
    """One loaded base and the adapter's updates: what is measured on them."""

    def __init__(self, model: Any, form: Form, pad_id: int, settings: RetentionSettings, progress: Progress) -> None:
        self.model, self.form, self.pad_id, self.settings, self.progress = model, form, pad_id, settings, progress
        modules = forms.linear_modules(model)
        self.modules = {name: modules[name] for name in form.updates}

    def moments(
        self, rows: Sequence[TokenRow], sets: Sequence[ReferenceSet]
    ) -> tuple[dict[str, Pair], dict[str, list[str]], tuple[str, ...], Moments]:
        """Pairs by owner, layers of each owner, notes, and the task's sums."""
        task = self._stream(_until(rows, self.settings.task_tokens), "task rows")
        given = [self._stream(one.give, f"reference text: {one.name}") for one in sets if one.give]
        given += [load(file) for file in self.settings.earlier]
        pairs, notes = filtering.pairs(task, given, ridge=self.settings.ridge, prior=self.settings.prior)
        layers: dict[str, list[str]] = {}
        for name, owner in task.owner.items():
            if owner in pairs:
                layers.setdefault(owner, []).append(name)
        return pairs, layers, notes, task

    def _stream(self, rows: Sequence[TokenRow], what: str) -> Moments:
        return stream(
            self.model, self.modules, rows, self.pad_id,
            exact_width=self.settings.exact_width, columns=self.settings.sketch_columns, seed=self.settings.seed,
            progress=lambda done, total: self.progress(done, total, f"second moments of {what}"),
        )  # fmt: skip

    def losses(self, updates: Mapping[str, Update], rows: Sequence[TokenRow]) -> tuple[float, ...]:
        return measure.losses(self.model, updates, rows, self.pad_id)

    def judge(self, arms: measure.Arms, rows: Sequence[TokenRow], what: str) -> Judged:
        return measure.judge(self.model, arms, rows, self.pad_id, lambda done, total: self.progress(done, total, what))

    def search(
        self,
        pairs: Mapping[str, Pair],
        layers: Mapping[str, list[str]],
        raw: tuple[float, ...],
        rows: Sequence[TokenRow],
        tolerance: Tolerance,
    ) -> tuple[RetentionEvidence, dict[str, Mapping[str, Update]], dict[str, forms.Written]]:
        """Both paths, and the arms that stay within the tolerance."""
        start = path.Losses(raw, measure.labels_of(rows))
        updates = self.form.updates
        spreads = self.spreads(pairs, layers, updates)

        def evaluate(make: Callable[[float], Mapping[str, Update]], what: str) -> Callable[[float], tuple[float, ...]]:
            def at(strength: float) -> tuple[float, ...]:
                self.progress(0, 1, f"{what} at {strength:.3g}")
                return self.losses(make(strength), rows)

            return at

        def scale(strength: float) -> Mapping[str, Update]:
            return scaled(updates, strength)

        def filtered(strength: float) -> Mapping[str, Update]:
            return filter_updates(updates, pairs, layers, strength)

        scales = path.morozov(start, evaluate(scale, SCALE), tolerance)
        filters = path.morozov(start, evaluate(filtered, FILTER), tolerance)
        arms: dict[str, Mapping[str, Update]] = {RAW: updates}
        forms_of: dict[str, forms.Written] = {}
        rises: dict[str, float] = {}
        refused: dict[str, str] = {}
        for arm, points, make in ((SCALE, scales, scale), (FILTER, filters, filtered)):
            if (point := path.chosen(points)) is None:
                continue
            try:
                arms[arm], forms_of[arm] = forms.loadable(self.form, make(point.strength), self.settings.max_error)
            except InputError as error:
                refused[arm] = str(error)
                continue
            if forms_of[arm].method == "truncated":
                rises[arm], _ = path.paired(raw, self.losses(arms[arm], rows), start.labels)
        base = path.Losses(self.losses({}, rows), start.labels)
        evidence = RetentionEvidence(
            tolerance=tolerance,
            base_loss=base.mean,
            raw_loss=start.mean,
            selection_rows=len(rows),
            kappa=filtering.joined(spreads).kappa,
            scale_path=scales,
            filter_path=filters,
            written_rise=rises,
            refused=refused,
            references={},
        )
        return evidence, arms, forms_of

    def spreads(
        self, pairs: Mapping[str, Pair], layers: Mapping[str, list[str]], updates: Mapping[str, Update]
    ) -> dict[str, Spread]:
        """The traces that kappa is made of, by layer."""
        return {
            name: filtering.spread(updates[name].a, updates[name].b, pairs[owner])
            for owner, names in layers.items()
            for name in names
        }

    def layers(
        self,
        pairs: Mapping[str, Pair],
        layers: Mapping[str, list[str]],
        after: Mapping[str, Update],
        sums: Moments,
    ) -> tuple[LayerRetention, ...]:
        """What was kept of each layer's update."""
        first = self.spreads(pairs, layers, self.form.updates)
        second = self.spreads(pairs, layers, after)
        return tuple(
            LayerRetention(
                name=name,
                tokens=sums.of(name).tokens,
                kappa=first[name].kappa,
                task_kept=_share(second[name].task, first[name].task),
                reference_kept=_share(second[name].reference, first[name].reference),
            )
            for name in sorted(first)
        )


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 1.0


def scaled(updates: Mapping[str, Update], strength: float) -> dict[str, Update]:
    """D / (1 + lambda) in every layer: the filter with Zt = Zr."""
    return {name: Update(update.a / (1 + strength), update.b) for name, update in updates.items()}


def filter_updates(
    updates: Mapping[str, Update], pairs: Mapping[str, Pair], layers: Mapping[str, list[str]], strength: float
) -> dict[str, Update]:
    """Every layer's update filtered; one factorisation serves all layers of an input. Layers without moments are left alone."""
    import torch

    made = dict(updates)
    for owner, names in layers.items():
        stacked = torch.cat([updates[name].a for name in names])
        kept = filtering.filtered(stacked, pairs[owner], strength).to(stacked).split([len(updates[n].a) for n in names])
        made |= {name: Update(part, updates[name].b) for name, part in zip(names, kept, strict=True)}
    return made


def _write(
    form: Form,
    arms: Mapping[str, Mapping[str, Update]],
    decision: RetentionDecision,
    folder: Path,
    source: str,
    written: Mapping[str, forms.Written],
) -> forms.Written:
    for name in (ADAPTER, RAW_ADAPTER):
        shutil.rmtree(folder / name, ignore_errors=True)
    forms.copy(form, folder / RAW_ADAPTER)
    if decision.choice == "none":
        forms.copy(form, folder / ADAPTER)
        return forms.Written(None, 0.0, "as trained")
    made = written[decision.choice]
    forms.write(form, arms[decision.choice], folder / ADAPTER, source, made)
    return made


def _until(rows: Sequence[TokenRow], tokens: int) -> list[TokenRow]:
    """The first rows that together hold `tokens` tokens, or all."""
    found: list[TokenRow] = []
    held = 0
    for row in rows:
        if held >= tokens:
            break
        found.append(row)
        held += len(row.input_ids)
    return found


def _task(bench: _Bench, arms: measure.Arms, rows: Sequence[TokenRow], seed: int) -> dict[str, Any]:
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


def _notes(form: Form, sums: Moments, rows: TaskRows) -> list[str]:
    found = []
    if form.kind != forms.AS_TRAINED:
        found.append(f"the adapter is no plain LoRA; its update was read as {form.kind}")
    if sums.unseen:
        found.append(f"{len(sums.unseen)} layers are left alone: {next(iter(sums.unseen.values()))}")
    if not rows.evaluation:
        found.append("no rows were left to judge the task: its loss is known on the rows that chose the strength alone")
    return found


__all__ = ["RetentionSettings", "TaskRows", "retain_adapter", "split_selection"]
