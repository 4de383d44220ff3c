"""The profile: what the rows are in tokens, and how well the base model does on them before any training."""

import math
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from lora_select import models, records
from lora_select.data.intake import read_canonical, read_places
from lora_select.data.labels import ends, render
from lora_select.data.labels.render import Row
from lora_select.data.labels.tokenize import NO_STOP, SEAM, Tokenized, tokenize
from lora_select.data.labels.tokens import TokenRow, collate, label_loss, write_rows
from lora_select.errors import InputError
from lora_select.records import BaseModel, Dataset, DatasetProfile, Quantiles, RejectedRows, SplitProfile, file_ref

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int, str], None]
LOSS_BATCH_ROWS = 8
TRUNCATION_WARNING = 0.05
SMALL_EVAL = 30
MAX_UNUSABLE = 0.05
EXAMPLES = 5
SHOWN = 3
PLACES = "places.parquet"


@final
@dataclass(frozen=True)
class Split:
    """A split after tokenising: what became of each row, and the compressed size of its label texts in bits per byte."""

    rows: tuple[Tokenized, ...]
    bits_per_byte: float

    def token_rows(self) -> list[TokenRow]:
        """The texts that are trained on, in file order."""
        return [text for item in self.rows for text in item.rows]


def profile(
    dataset: Dataset,
    dataset_folder: Path,
    base: BaseModel,
    *,
    max_length: int,
    base_loss_rows: int,
    dtype: str,
    device: str,
    folder: Path,
    max_unusable: float = MAX_UNUSABLE,
    progress: Progress | None = None,
) -> DatasetProfile:
    """Tokenise both splits, count, and measure the base model's loss on held-out rows.

    The limits that stop a run are checked after tokenising and before the model is loaded. A row whose labels would be wrong
    is left out and counted; `max_unusable` is the share of such rows above which the run stops.

    Raises:
        InputError: no label token is left, too many rows are unusable, or the tokenizer cannot say where the answers are.
    """
    tokenizer = models.load_tokenizer(base.path)
    train = _tokenize(dataset_folder / dataset.train_file.path, tokenizer, max_length)
    held_out = _tokenize(dataset_folder / dataset.eval_file.path, tokenizer, max_length)
    unusable = _unusable(train.rows, held_out.rows, dataset_folder, max_unusable)
    splits = {"training": _split(train.rows), "evaluation": _split(held_out.rows)}
    for name, split in splits.items():
        _refuse_unsupervised(name, split, max_length)
    _refuse_unembedded((*train.rows, *held_out.rows), tokenizer, base)
    for name, tokenized in (("train_tokens", train), ("eval_tokens", held_out)):
        write_rows(folder / f"{name}.parquet", tokenized.token_rows())
    measured = held_out.token_rows()[:base_loss_rows]
    losses = _base_losses(measured, base, tokenizer, dtype, device, progress)
    loss, standard_error = _ratio(losses)
    label_tokens = splits["training"].label_tokens
    return DatasetProfile(
        dataset_digest=dataset.digest,
        model_digest=base.digest,
        max_length=max_length,
        train=splits["training"],
        eval=splits["evaluation"],
        eval_rows_in_train=len({item.row_id for item in train.rows} & {item.row_id for item in held_out.rows}),
        base_loss=records.finite(loss, "the base model's loss"),
        base_loss_se=standard_error,
        base_loss_rows=len(measured),
        bits_per_byte=train.bits_per_byte,
        information_bits=label_tokens * loss / math.log(2),
        warnings=(
            *_left_out(splits["training"], unusable, max_length),
            *_about_ends(train.rows, tokenizer),
            *_warnings(splits["training"], splits["evaluation"], base, tokenizer, max_length),
        ),
        train_tokens_file=file_ref(folder / "train_tokens.parquet", folder),
        eval_tokens_file=file_ref(folder / "eval_tokens.parquet", folder),
        unusable=unusable,
        notes=_notes(train.rows),
        base_losses=tuple(total for total, _ in losses) if dtype == "float32" else (),
        base_device=device,
    )


def _tokenize(path: Path, tokenizer: "PreTrainedTokenizerBase", max_length: int) -> Split:
    """One row at a time; the texts of the answers go through the compressor as they pass."""
    compressor, raw, compressed = zlib.compressobj(9), 0, 0
    made = []
    try:
        for row_id, row in read_canonical(path):
            made.append(tokenize(row_id, row, tokenizer, max_length))
            for text in _label_texts(row):
                piece = (text if not raw else f"\n{text}").encode(errors="replace")
                raw += len(piece)
                compressed += len(compressor.compress(piece))
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"the rows cannot be tokenised for training: {error}") from error
    compressed += len(compressor.flush())
    return Split(tuple(made), 8 * compressed / max(1, raw))


def _label_texts(row: Row) -> Iterator[str]:
    if render.is_text(row):
        yield row["messages"][0]["content"]
    else:
        yield from (render.answer_text(m) for m in row["messages"] if m["role"] == "assistant" and m.get("train", True))


def _unusable(
    train: Sequence[Tokenized], held_out: Sequence[Tokenized], folder: Path, limit: float
) -> tuple[RejectedRows, ...]:
    """Rows with a fault by reason, the most frequent first.

    Raises:
        InputError: their share is above `limit`; shows three of them.
    """
    found = [
        (split, item)
        for split, rows in (("train", train), ("eval", held_out))
        for item in rows
        if item.fault is not None
    ]
    if not found:
        return ()
    places = read_places(folder / PLACES, {(item.row_id, split) for split, item in found})
    by_reason: dict[str, list[str]] = {}
    for split, item in found:
        place = places.get((item.row_id, split), f"row {item.row_id[:12]}")
        by_reason.setdefault(item.fault or "", []).append(place)
    ordered = sorted(by_reason.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    total = len(train) + len(held_out)
    if len(found) > limit * total:
        one_of_each = [(listed[0], reason) for reason, listed in ordered]
        others = [(place, reason) for reason, listed in ordered for place in listed[1:]]
        shown = "; ".join(f"{place} ({reason})" for place, reason in [*one_of_each, *others][:SHOWN])
        raise InputError(
            f"{len(found)} of {total} rows cannot be learnt with this model's chat template and tokenizer, and "
            f"`dataset.max_unusable` is {limit:g}: {shown}; mend the rows, take a model that has a form for them, or raise "
            "`dataset.max_unusable` to leave them out"
        )
    return tuple(RejectedRows(reason, len(listed), tuple(sorted(listed)[:EXAMPLES])) for reason, listed in ordered)


def _split(tokenized: Sequence[Tokenized]) -> SplitProfile:
    usable = [item for item in tokenized if item.fault is None]
    kept = [text for item in usable for text in item.rows]
    tokens = sum(len(row.input_ids) for row in kept)
    labels = sum(sum(row.label_mask) for row in kept)
    before = sum(item.labels for item in usable)
    return SplitProfile(
        rows=len(tokenized),
        tokens=tokens,
        prompt_tokens=tokens - labels,
        label_tokens=labels,
        length=_quantiles([item.length for item in usable]),
        label_length=_quantiles([item.labels for item in usable]),
        duplicate_rows=len(kept) - len({row.input_ids for row in kept}),
        rows_truncated=sum(bool(item.rows) and _labels_of(item) < item.labels for item in usable),
        label_tokens_lost=before - labels,
        rows_without_labels=sum(not item.rows for item in usable),
        rows_unusable=len(tokenized) - len(usable),
        texts=len(kept),
    )


def _labels_of(item: Tokenized) -> int:
    return sum(sum(text.label_mask) for text in item.rows)


def _quantiles(values: Sequence[int]) -> Quantiles:
    ordered = sorted(values) or [0]

    def at(share: float) -> int:
        return ordered[min(len(ordered) - 1, math.ceil(share * len(ordered)) - 1)]

    return Quantiles(ordered[0], at(0.5), at(0.9), at(0.99), ordered[-1], sum(ordered) / len(ordered))


def _refuse_unsupervised(name: str, split: SplitProfile, max_length: int) -> None:
    if split.label_tokens:
        return
    raise InputError(
        f"no {name} row has a label token within `dataset.max_length` = {max_length} tokens (shortest row: "
        f"{split.length.minimum}, longest: {split.length.maximum}); raise it, or check that rows hold answers"
    )


def _refuse_unembedded(rows: Sequence[Tokenized], tokenizer: "PreTrainedTokenizerBase", base: BaseModel) -> None:
    """Refuse rows with tokens that the model has no embedding for: a tokenizer to which tokens were added.

    Raises:
        InputError: there are such; names one.
    """
    highest = max((max(text.input_ids) for item in rows for text in item.rows), default=-1)
    highest = max(highest, models.pad_id(tokenizer))
    if base.vocab_size and highest >= base.vocab_size:
        raise InputError(
            f"the tokenizer in {base.path} uses token {highest} ({tokenizer.convert_ids_to_tokens(highest)}), the model has embeddings for "
            f"{base.vocab_size:,}; take the added tokens out of the tokenizer, or bring the model with its embeddings resized"
        )


def _base_losses(
    rows: Sequence[TokenRow],
    base: BaseModel,
    tokenizer: "PreTrainedTokenizerBase",
    dtype: str,
    device: str,
    progress: Progress | None,
) -> list[tuple[float, int]]:
    """`(summed nll, label tokens)` of each row, batched by length."""
    import torch

    model: Any = models.load_model(base.path, dtype=dtype, device=device)
    models.refuse_lookahead(model)
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    losses: list[tuple[float, int]] = [(0.0, 0)] * len(rows)
    with torch.inference_mode():
        for start in range(0, len(order), LOSS_BATCH_ROWS):
            chosen = order[start : start + LOSS_BATCH_ROWS]
            batch = collate([rows[index] for index in chosen], models.pad_id(tokenizer))
            nll, count = label_loss(model, {name: tensor.to(device) for name, tensor in batch.items()})
            for index, total, tokens in zip(chosen, nll.tolist(), count.tolist(), strict=True):
                losses[index] = (total, tokens)
            if progress:
                progress(min(start + LOSS_BATCH_ROWS, len(order)), len(order), "base loss")
    return losses


def _ratio(losses: Sequence[tuple[float, int]]) -> tuple[float, float]:
    """The ratio estimate sum(nll) / sum(tokens) and its standard error with rows as the unit (Cochran 1977, eq. 6.13)."""
    total, tokens = sum(nll for nll, _ in losses), sum(count for _, count in losses)
    ratio = total / tokens
    n = len(losses)
    if n < 2:
        return ratio, 0.0
    variance = sum((nll - ratio * count) ** 2 for nll, count in losses) / (n - 1)
    return ratio, math.sqrt(variance * n) / tokens


def _left_out(train: SplitProfile, unusable: Sequence[RejectedRows], max_length: int) -> Iterator[str]:
    """Rows that are not trained on, first of all that is said."""
    if train.rows_without_labels:
        yield (
            f"{train.rows_without_labels} of {train.rows} training rows left out: their prompt alone is over "
            f"`dataset.max_length` = {max_length} tokens; raise it to learn them"
        )
    for item in unusable:
        many = f"{item.count} rows are" if item.count > 1 else "1 row is"
        yield f"{many} left out: {item.reason} ({', '.join(item.examples[:SHOWN])})"


def _about_ends(rows: Sequence[Tokenized], tokenizer: "PreTrainedTokenizerBase") -> Iterator[str]:
    """What keeps a model from starting an answer as it was learnt, or from ending it."""
    counts = Counter(note for item in rows for note in item.notes)
    for note in (NO_STOP, SEAM):
        if counts[note]:
            yield f"{counts[note]} of {len(rows)} training rows: {note}"
    end = ends.end_of_turn(tokenizer)
    if end is not None and end not in [tokenizer.eos_token_id, *ends.named_by_model(tokenizer.name_or_path)]:
        yield (
            f"answers end with {tokenizer.convert_ids_to_tokens(end)}, which neither the tokenizer nor generation_config.json names as an end "
            "token: a server will not stop there; add it to `eos_token_id` in generation_config.json"
        )


def _notes(rows: Sequence[Tokenized]) -> tuple[str, ...]:
    counts = Counter(note for item in rows for note in item.notes if note not in (NO_STOP, SEAM))
    return tuple(
        f"{count} training rows: {note}" for note, count in sorted(counts.items(), key=lambda i: (-i[1], i[0]))
    )


def _warnings(
    train: SplitProfile,
    held_out: SplitProfile,
    base: BaseModel,
    tokenizer: "PreTrainedTokenizerBase",
    max_length: int,
) -> tuple[str, ...]:
    found = []
    if train.rows_truncated > TRUNCATION_WARNING * train.rows:
        found.append(
            f"{train.rows_truncated} of {train.rows} training rows are longer than {max_length} tokens and are cut; "
            "raise `dataset.max_length`"
        )
    if held_out.rows < SMALL_EVAL:
        found.append(f"only {held_out.rows} evaluation rows: intervals will be wide")
    if train.duplicate_rows:
        found.append(f"{train.duplicate_rows} training rows have the same tokens as another")
    if not tokenizer.chat_template:
        end = (
            "end with the end-of-text token"
            if tokenizer.eos_token
            else "have no end token, since the tokenizer has none"
        )
        found.append(f"the base model has no chat template; messages are joined by newlines and answers {end}")
    if base.max_position_embeddings and max_length > base.max_position_embeddings:
        found.append(f"`dataset.max_length` {max_length} is over the model's {base.max_position_embeddings} positions")
    return tuple(found)
