"""Base against adapted on the same held-out rows, one model in memory at a time."""

import gc
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.data import render, samples
from lora_select.data.intake import read_canonical
from lora_select.data.render import Row
from lora_select.data.tokens import TokenRow, collate, label_loss, read_rows
from lora_select.evaluation import metrics
from lora_select.evaluation.interval import paired_bootstrap
from lora_select.records import BaseModel, Evaluation, MetricComparison, Sample, file_ref, write_text

Progress = Callable[[int, int, str], None]
SAMPLES = 8
CHUNK_TOKENS = 128
LOSS_UNIT = "nats/token"


@dataclass(frozen=True)
class EvaluationOptions:
    """What is measured: rows to generate for, resamples, tokens of reference text; and how."""

    exact_match_rows: int
    max_new_tokens: int
    bootstrap_samples: int
    reference_tokens: int
    seed: int = 0
    batch_size: int = 8
    dtype: str = "float32"
    device: str = "cpu"


@dataclass(frozen=True)
class Material:
    """The rows that every model is measured on."""

    rows: Sequence[TokenRow]
    reference: Sequence[TokenRow]
    prompts: Sequence[str]
    asked: Sequence[str]
    expected: Sequence[str]
    pad_id: int


@dataclass(frozen=True)
class Measured:
    """One model's numbers: summed loss in nats per row and per reference chunk, and its answers."""

    losses: tuple[float, ...]
    reference: tuple[float, ...]
    answers: tuple[str, ...]


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
    """
    tokenizer = models.load_tokenizer(base.path)
    material = _material(tokenizer, eval_tokens, eval_rows, options)
    folders: dict[str, Path | None] = {"base": None, "adapted": adapter, **others}
    measured = {}
    for index, (name, adapter_folder) in enumerate(folders.items()):

        def report(done: int, total: int, what: str, index: int = index, name: str = name) -> None:
            if progress:
                progress(index * total + done, len(folders) * total, f"{what} of {name}")

        measured[name] = _measure_or_read(base, adapter_folder, material, options, folder / f"{name}.json", report)
    write_text(folder / "rows.json", _table(material, measured))
    compared = {name: _compare(measured[name], measured["adapted"], material, options) for name in ("base", *others)}
    forgetting = _forgetting(measured["base"], measured["adapted"], material, options)
    return Evaluation(
        adapter_digest=adapter_digest,
        dataset_digest=dataset_digest,
        metrics=compared["base"],
        against={name: compared[name] for name in others},
        forgetting=forgetting,
        samples=_samples(material, measured),
        rows_file=file_ref(folder / "rows.json", folder),
        notes=_notes(material, measured, options),
    )


def _material(tokenizer: Any, eval_tokens: Path, eval_rows: Path, options: EvaluationOptions) -> Material:
    rows = read_rows(eval_tokens)
    chats = [row for _, row in read_canonical(eval_rows) if not render.is_text(row)][: options.exact_match_rows]
    pairs = [render.prompt_and_answer(row, tokenizer) for row in chats]
    return Material(
        rows=rows,
        reference=reference_rows(tokenizer, options.reference_tokens),
        prompts=[prompt for prompt, _ in pairs],
        asked=[_last_question(row) for row in chats],
        expected=[answer for _, answer in pairs],
        pad_id=models.pad_id(tokenizer),
    )


def _last_question(row: Row) -> str:
    """What a person reads as the question: the last user message."""
    return next((turn["content"] for turn in reversed(row["messages"]) if turn["role"] == "user"), "")


def reference_rows(tokenizer: Any, tokens: int) -> list[TokenRow]:
    """Chunks of general English prose, spread evenly over the reference text; every token but the first is a label."""
    text = samples.reference_text()
    count = max(2, tokens // CHUNK_TOKENS)
    stride = len(text) // count
    rows = []
    for index in range(count):
        ids = tokenizer(text[index * stride : index * stride + 12 * CHUNK_TOKENS], add_special_tokens=True)["input_ids"]
        ids = tuple(ids[:CHUNK_TOKENS])
        rows.append(TokenRow(f"reference-{index}", ids, (False, *[True] * (len(ids) - 1))))
    return rows


def _measure_or_read(
    base: BaseModel, adapter: Path | None, material: Material, options: EvaluationOptions, note: Path, report: Progress
) -> Measured:
    if note.is_file():
        values = json.loads(note.read_text(encoding="utf-8"))
        return Measured(*(tuple(values[name]) for name in ("losses", "reference", "answers")))
    model = _load(base, adapter, options)
    total = len(material.rows) + len(material.reference) + len(material.prompts)
    losses = _losses(model, material.rows, material.pad_id, options, lambda done: report(done, total, "loss"))
    done = len(losses)
    reference = _losses(
        model, material.reference, material.pad_id, options, lambda n: report(done + n, total, "reference loss")
    )
    answers: list[str] = []
    if material.prompts:
        answers = metrics.generate(
            model,
            models.load_tokenizer(base.path),
            material.prompts,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            progress=lambda n, _total, what: report(done + len(reference) + n, total, what),
        )
    measured = Measured(tuple(losses), tuple(reference), tuple(answers))
    write_text(note, json.dumps(vars(measured), ensure_ascii=False) + "\n")
    del model
    gc.collect()
    return measured


def _load(base: BaseModel, adapter: Path | None, options: EvaluationOptions) -> Any:
    model = models.load_model(base.path, dtype=options.dtype, device=options.device)
    if adapter is None:
        return model
    from peft import PeftModel

    return PeftModel.from_pretrained(model, str(adapter)).eval()


def _losses(
    model: Any,
    rows: Sequence[TokenRow],
    pad_id: int,
    options: EvaluationOptions,
    report: Callable[[int], None],
) -> list[float]:
    """Summed loss of each row in nats, in the order of the rows; batched by length."""
    import torch

    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    losses = [0.0] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), options.batch_size):
            chosen = order[start : start + options.batch_size]
            batch = collate([rows[index] for index in chosen], pad_id)
            nll, _ = label_loss(model, {name: tensor.to(options.device) for name, tensor in batch.items()})
            for index, value in zip(chosen, nll.tolist(), strict=True):
                losses[index] = value
            report(min(start + options.batch_size, len(order)))
    return losses


def _label_counts(rows: Sequence[TokenRow]) -> list[int]:
    return [sum(row.label_mask) for row in rows]


def _compare(
    before: Measured, after: Measured, material: Material, options: EvaluationOptions
) -> dict[str, MetricComparison]:
    found = {
        "loss": comparison(
            before.losses, after.losses, _label_counts(material.rows), unit=LOSS_UNIT, better="lower", options=options
        )
    }
    if len(material.expected) >= 2:
        found["exact_match"] = _share(_matches(before, material), _matches(after, material), options)
        if all(metrics.as_json(text) is not None for text in material.expected):
            found["valid_json"] = _share(_valid(before), _valid(after), options)
    return found


def _share(before: Sequence[float], after: Sequence[float], options: EvaluationOptions) -> MetricComparison:
    return comparison(before, after, None, unit="of rows", better="higher", options=options)


def _matches(measured: Measured, material: Material) -> list[float]:
    pairs = zip(material.expected, measured.answers, strict=True)
    return [float(metrics.exact_match(expected, answer)) for expected, answer in pairs]


def _valid(measured: Measured) -> list[float]:
    return [float(metrics.as_json(answer) is not None) for answer in measured.answers]


def comparison(
    before: Sequence[float],
    after: Sequence[float],
    weights: Sequence[int] | None,
    *,
    unit: str,
    better: str,
    options: EvaluationOptions,
) -> MetricComparison:
    """A metric on the same rows before and after, with its interval."""
    first, second, difference, interval = paired_bootstrap(
        before, after, weights, samples=options.bootstrap_samples, seed=options.seed
    )
    return MetricComparison(
        base=first,
        adapted=second,
        difference=difference,
        interval=interval,
        rows=len(before),
        unit=unit,
        better=better,
        significant=interval[0] > 0 or interval[1] < 0,
    )


def _forgetting(before: Measured, after: Measured, material: Material, options: EvaluationOptions) -> MetricComparison:
    counts = _label_counts(material.reference)
    return comparison(before.reference, after.reference, counts, unit=LOSS_UNIT, better="lower", options=options)


def _samples(material: Material, measured: Mapping[str, Measured]) -> tuple[Sample, ...]:
    """The first rows in file order (which is by digest): not chosen by how well they came out."""
    count = min(SAMPLES, len(material.prompts))
    return tuple(
        Sample(material.asked[i], material.expected[i], measured["base"].answers[i], measured["adapted"].answers[i])
        for i in range(count)
    )


def _table(material: Material, measured: Mapping[str, Measured]) -> str:
    """Per-row results: digest, label tokens, and each model's summed loss and answer."""
    rows = []
    for index, row in enumerate(material.rows):
        values: dict[str, Any] = {"row_id": row.row_id, "label_tokens": sum(row.label_mask)}
        values |= {f"{name}_loss": one.losses[index] for name, one in measured.items()}
        rows.append(values)
    answers = [
        {"expected": expected, **{name: one.answers[index] for name, one in measured.items()}}
        for index, expected in enumerate(material.expected)
    ]
    return json.dumps({"losses": rows, "answers": answers}, ensure_ascii=False, indent=1) + "\n"


def _notes(material: Material, measured: Mapping[str, Measured], options: EvaluationOptions) -> tuple[str, ...]:
    notes = [
        f"loss on all {len(material.rows)} held-out rows, intervals from {options.bootstrap_samples} paired resamples"
    ]
    if material.prompts:
        notes.append(
            f"exact match on the first {len(material.prompts)} of {len(material.rows)} held-out rows, greedy, at most "
            f"{options.max_new_tokens} new tokens; answers that parse as JSON are compared as JSON"
        )
    notes.append(
        f"forgetting on {len(material.reference)} chunks of Python's language reference "
        f"({sum(_label_counts(material.reference))} tokens); compared: {', '.join(measured)}"
    )
    return tuple(notes)
