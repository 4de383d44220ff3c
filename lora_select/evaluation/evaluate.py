"""Base against adapted on the same held-out rows, one model in memory at a time."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from lora_select import models
from lora_select.evaluation import metrics, user_metrics
from lora_select.evaluation.interval import FEW_ROWS, paired_bootstrap
from lora_select.evaluation.material import EvaluationOptions, Material, gather
from lora_select.evaluation.model_losses import (
    BASE,
    MERGED,
    UNMEASURED,
    Measured,
    Progress,
    arms,
    label_counts,
    measure,
    measure_arms,
)
from lora_select.evaluation.power import paired_error
from lora_select.evaluation.user_metrics import AnswerMetric
from lora_select.evaluation.wording import FEW_SHOT, SHARE_UNIT
from lora_select.records import BaseModel, Evaluation, MetricComparison, Sample, StoredGain, file_ref, write_text

__all__ = ["EvaluationOptions", "compare", "evaluate"]

SAMPLES = 8
LOSS_UNIT = "nats/token"


def evaluate(
    base: BaseModel,
    adapter: Path,
    *,
    eval_tokens: Path,
    eval_rows: Path,
    adapter_digest: str,
    dataset_digest: str,
    options: EvaluationOptions,
    others: Mapping[str, Path],
    folder: Path,
    progress: Progress | None = None,
    before: Mapping[str, Measured] = MappingProxyType({}),
) -> Evaluation:
    """Measure the base model, the adapter and other adapters, and compare them row by row.

    Each model's numbers are kept in `<name>.json` as they come, so a killed evaluation goes on where it was.

    Args:
        base: the base model.
        adapter: a PEFT folder.
        eval_tokens: token rows of the evaluation split.
        eval_rows: canonical rows of the evaluation split.
        adapter_digest: goes into the record.
        dataset_digest: goes into the record.
        options: what is measured.
        others: name -> PEFT folder of adapters to compare with, such as `plain_lora` and `champion`.
        folder: where results go.
        progress: called with (done, total, what).
        before: what was measured before the training: of `base` losses and answers, and all of `few_shot`.

    Raises:
        InputError: fewer than two held-out rows, or a metric of the user's that fails.
        RuntimeError: a loss is not finite.
    """
    answer_metrics = user_metrics.parse(options.metrics)
    tokenizer = models.load_tokenizer(base.path)
    material = gather(tokenizer, eval_tokens, eval_rows, options, longest=base.max_position_embeddings)
    folders: dict[str, Path | None] = {"base": None, "adapted": adapter, **others}
    names = [*folders, *arms(options.quantized)]
    measured = {}

    def report_of(name: str) -> Progress:
        def report(done: int, total: int, what: str) -> None:
            if progress:
                progress(names.index(name) * total + done, len(names) * total, f"{what} of {name}")

        return report

    for name, adapter_folder in folders.items():
        known = before.get(name, UNMEASURED)
        note = folder / f"{name}.json"
        measured[name] = measure(base, adapter_folder, material, options, note, report_of(name), known)
    measured |= measure_arms(base, adapter, material, options, folder, report_of)
    measured |= {name: before[name] for name in before if name == FEW_SHOT}
    write_text(folder / "rows.json", _table(material, measured))
    compared = {
        name: compare(measured[name], measured["adapted"], material, options, answer_metrics)
        for name in ("base", *others)
    }
    if FEW_SHOT in measured:
        alone = replace(measured["adapted"], tasks={})
        compared[FEW_SHOT] = compare(measured[FEW_SHOT], alone, material, options, answer_metrics)
    in_fewer_bits = {
        form: compare(measured["adapted"], measured[f"{MERGED}{form}"], material, options, answer_metrics)
        for form in options.quantized
    }
    return Evaluation(
        adapter_digest=adapter_digest,
        dataset_digest=dataset_digest,
        metrics=compared["base"],
        against={name: compared[name] for name in compared if name != "base"},
        forgetting=_forgetting(measured["base"], measured["adapted"], material, options),
        samples=_samples(material, measured),
        rows_file=file_ref(folder / "rows.json", folder),
        notes=_notes(material, measured, options),
        checkable=_checkable(material, answer_metrics) if len(material.questions) >= 2 else (),
        stored=gains(measured, in_fewer_bits, label_counts(material.rows), **_drawn(options)),
    )


def compare(
    before: Measured,
    after: Measured,
    material: Material,
    options: EvaluationOptions,
    answer_metrics: Sequence[AnswerMetric],
) -> dict[str, MetricComparison]:
    """Every metric of two models on the same rows: loss, shares of answers, the user's own, and the tasks that both were measured on."""
    drawn = _drawn(options)
    labels = label_counts(material.rows)
    found = {"loss": comparison(before.losses, after.losses, labels, unit=LOSS_UNIT, better="lower", **drawn)}
    if len(material.questions) >= 2:
        found["exact_match"] = _share(_matches(before, material), _matches(after, material), options)
        if all(metrics.as_json(question.expected) is not None for question in material.questions):
            found["valid_json"] = _share(_valid(before), _valid(after), options)
        expected = [question.expected for question in material.questions]
        for metric in answer_metrics:
            first, second = (user_metrics.scores(metric, one.answers, expected) for one in (before, after))
            found[metric.name] = comparison(first, second, None, unit=metric.unit, better="higher", **drawn)
    for name, scores in after.tasks.items():
        unit = SHARE_UNIT if scores.is_share and before.tasks[name].is_share else user_metrics.SCORE_UNIT
        first = before.tasks[name].values
        found[name] = comparison(first, scores.values, None, unit=unit, better=scores.better, **drawn)
    return found


def _checkable(material: Material, answer_metrics: Sequence[AnswerMetric]) -> tuple[str, ...]:
    """Metrics with one right answer a row: exact match where every answer is JSON or one short line, and what says so itself."""
    expected = [question.expected for question in material.questions]
    as_json = all(metrics.as_json(text) is not None for text in expected)
    names = ["exact_match"] * metrics.has_one_form(expected) + ["valid_json"] * as_json
    return (*names, *(metric.name for metric in answer_metrics if metric.checkable))


def _forgetting(before: Measured, after: Measured, material: Material, options: EvaluationOptions) -> MetricComparison:
    counts = label_counts(material.reference)
    return comparison(before.reference, after.reference, counts, unit=LOSS_UNIT, better="lower", **_drawn(options))


def _drawn(options: EvaluationOptions) -> dict[str, int]:
    return {"samples": options.bootstrap_samples, "seed": options.seed}


def _share(before: Sequence[float], after: Sequence[float], options: EvaluationOptions) -> MetricComparison:
    return comparison(before, after, None, unit=SHARE_UNIT, better="higher", **_drawn(options))


def _matches(measured: Measured, material: Material) -> list[float]:
    pairs = zip(material.questions, measured.answers, strict=True)
    return [float(metrics.exact_match(question.expected, answer)) for question, answer in pairs]


def _valid(measured: Measured) -> list[float]:
    return [float(metrics.as_json(answer) is not None) for answer in measured.answers]


def comparison(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[int] | None,
    *,
    unit: str,
    better: str,
    seed: int,
    samples: int = 2000,
) -> MetricComparison:
    """A metric on the same rows before and after, with its paired 95 % interval over `samples` resamples of rows and its standard error.

    Args:
        before: one number per row; of a loss its sum in nats.
        after: the same rows, after.
        weights: label tokens of each row; None for a mean over rows.
        unit: of the metric, such as `nats/token`.
        better: `lower` or `higher`.
        seed: of the resampling.
        samples: resamples.

    Raises:
        InputError: fewer than two rows.
    """
    first, second, difference, interval = paired_bootstrap(before, after, weights, samples=samples, seed=seed)
    return MetricComparison(
        base=first,
        adapted=second,
        difference=difference,
        interval=interval,
        rows=len(before),
        unit=unit,
        better=better,
        significant=interval[0] > 0 or interval[1] < 0,
        standard_error=paired_error(before, after, weights),
    )


def gains(
    measured: Mapping[str, Measured],
    metrics: Mapping[str, Mapping[str, MetricComparison]],
    labels: Sequence[int],
    *,
    seed: int,
    samples: int,
) -> tuple[StoredGain, ...]:
    """One record a form.

    The share that is left is sum(base - merged) / sum(base - adapter) over the rows' losses, its interval that of the same ratio over
    resampled rows. It is told where the adapter's own gain stands clear of noise: a share of nothing says nothing.

    Args:
        measured: `base`, `adapted` and the arms.
        metrics: the comparison of the adapter (`base`) with each merged arm (`adapted`), by form.
        labels: label tokens of each row.
        seed: of the resampling.
        samples: resamples.
    """
    before, after = measured["base"].losses, measured["adapted"].losses
    gain = [first - second for first, second in zip(before, after, strict=True)]
    *_, (low, _) = paired_bootstrap([0.0] * len(gain), gain, labels, samples=samples, seed=seed)
    found = []
    for form, compared in metrics.items():
        share, interval = None, None
        if low > 0:
            kept = [first - second for first, second in zip(before, measured[f"{MERGED}{form}"].losses, strict=True)]
            _, _, share, interval = paired_bootstrap([0.0] * len(kept), kept, gain, samples=samples, seed=seed)
        stored_base = sum(measured[f"{BASE}{form}"].losses) / sum(labels)
        found.append(StoredGain(form, stored_base, compared, share, interval))
    return tuple(found)


def _samples(material: Material, measured: Mapping[str, Measured]) -> tuple[Sample, ...]:
    """The first questions in file order (which is by digest): not chosen by how well they came out."""
    base, adapted = measured["base"].answers, measured["adapted"].answers
    shown = list(zip(material.questions, base, adapted, strict=True))[:SAMPLES]
    return tuple(Sample(question.asked, question.expected, before, after) for question, before, after in shown)


def _table(material: Material, measured: Mapping[str, Measured]) -> str:
    """Per-row results: digest, label tokens, and each model's summed loss (nats) and answer."""
    rows = []
    for index, row in enumerate(material.rows):
        values: dict[str, Any] = {"row_id": row.row_id, "label_tokens": sum(row.label_mask)}
        rows.append(values | {f"{name}_loss": one.losses[index] for name, one in measured.items()})
    answers = []
    for index, question in enumerate(material.questions):
        values = {"row_id": question.row_id, "prompt": question.prompt, "expected": question.expected}
        answers.append(values | {name: one.answers[index] for name, one in measured.items() if one.answers})
    return json.dumps({"losses": rows, "answers": answers}, ensure_ascii=False, indent=1) + "\n"


def _notes(material: Material, measured: Mapping[str, Measured], options: EvaluationOptions) -> tuple[str, ...]:
    notes = [
        f"loss on all {len(material.rows)} held-out rows, intervals from {options.bootstrap_samples} paired resamples",
        *material.left_out,
    ]
    if material.questions:
        notes.append(
            f"exact match on the first {len(material.questions)} of {len(material.rows)} held-out rows, greedy, at most "
            f"{options.max_new_tokens} new tokens; answers that parse as JSON are compared as JSON"
        )
    notes.append(
        f"forgetting on {len(material.reference)} chunks of Python's language reference "
        f"({sum(label_counts(material.reference))} tokens); compared: {', '.join(measured)}"
    )
    few = {"loss": len(material.rows), "exact match": len(material.questions), "forgetting": len(material.reference)}
    notes += [
        f"only {count} rows for {name}: an interval over fewer than {FEW_ROWS} is too short"
        for name, count in few.items()
        if 0 < count < FEW_ROWS
    ]
    return tuple(notes)
