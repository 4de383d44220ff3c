"""The profile: what the rows are in tokens, and how well the base model does on them before any training."""

import math
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select import models, records
from lora_select.data import render
from lora_select.data.intake import read_canonical
from lora_select.data.render import Row
from lora_select.data.tokenize import Tokenized, tokenize
from lora_select.data.tokens import TokenRow, collate, label_loss, write_rows
from lora_select.errors import InputError
from lora_select.records import BaseModel, Dataset, DatasetProfile, Quantiles, SplitProfile, file_ref

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Progress = Callable[[int, int, str], None]
LOSS_BATCH_ROWS = 8
TRUNCATION_WARNING = 0.05
SMALL_EVAL = 30


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
    progress: Progress | None = None,
) -> DatasetProfile:
    """Tokenise both splits, count, and measure the base model's loss on held-out rows.

    The limits that stop a run are checked after tokenising and before the model is loaded.

    Raises:
        InputError: no label token is left, or the tokenizer cannot say where the answers are.
    """
    tokenizer = models.load_tokenizer(base.path)
    train_rows = list(read_canonical(dataset_folder / dataset.train_file.path))
    eval_rows = list(read_canonical(dataset_folder / dataset.eval_file.path))
    train = _tokenize(train_rows, tokenizer, max_length)
    held_out = _tokenize(eval_rows, tokenizer, max_length)
    splits = {"training": _split(train), "evaluation": _split(held_out)}
    for name, split in splits.items():
        _refuse_unsupervised(name, split, max_length)
    for name, tokenized in (("train_tokens", train), ("eval_tokens", held_out)):
        write_rows(folder / f"{name}.parquet", [item.row for item in tokenized if item.row is not None])
    measured = [item.row for item in held_out if item.row is not None][:base_loss_rows]
    losses = _base_losses(measured, base, tokenizer, dtype, device, progress)
    loss, standard_error = _ratio(losses)
    label_tokens = splits["training"].label_tokens
    return DatasetProfile(
        dataset_digest=dataset.digest,
        model_digest=base.digest,
        max_length=max_length,
        train=splits["training"],
        eval=splits["evaluation"],
        eval_rows_in_train=len({row_id for row_id, _ in train_rows} & {row_id for row_id, _ in eval_rows}),
        base_loss=records.finite(loss, "the base model's loss"),
        base_loss_se=standard_error,
        base_loss_rows=len(measured),
        bits_per_byte=_bits_per_byte([row for _, row in train_rows]),
        information_bits=label_tokens * loss / math.log(2),
        warnings=_warnings(splits["training"], splits["evaluation"], base, max_length),
        train_tokens_file=file_ref(folder / "train_tokens.parquet", folder),
        eval_tokens_file=file_ref(folder / "eval_tokens.parquet", folder),
    )


def _tokenize(
    rows: Sequence[tuple[str, Row]], tokenizer: "PreTrainedTokenizerBase", max_length: int
) -> list[Tokenized]:
    try:
        return [tokenize(row_id, row, tokenizer, max_length) for row_id, row in rows]
    except (ValueError, NotImplementedError) as error:
        raise InputError(f"the rows cannot be tokenised for training: {error}") from error


def _split(tokenized: Sequence[Tokenized]) -> SplitProfile:
    kept = [item.row for item in tokenized if item.row is not None]
    tokens = sum(len(row.input_ids) for row in kept)
    labels = sum(sum(row.label_mask) for row in kept)
    before = sum(item.labels for item in tokenized)
    return SplitProfile(
        rows=len(tokenized),
        tokens=tokens,
        prompt_tokens=tokens - labels,
        label_tokens=labels,
        length=_quantiles([item.length for item in tokenized]),
        label_length=_quantiles([item.labels for item in tokenized]),
        duplicate_rows=len(kept) - len({row.input_ids for row in kept}),
        rows_truncated=sum(
            item.row is None or item.length > len(item.row.input_ids) for item in tokenized if item.labels
        ),
        label_tokens_lost=before - labels,
        rows_without_labels=len(tokenized) - len(kept),
    )


def _quantiles(values: Sequence[int]) -> Quantiles:
    ordered = sorted(values)

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


def _bits_per_byte(rows: Sequence[Row]) -> float:
    """Compressed size of all label texts in bits per byte of text (zlib, level 9)."""
    texts = []
    for row in rows:
        if render.is_text(row):
            texts.append(row["messages"][0]["content"])
        texts += [render.answer_text(message) for message in row["messages"] if message["role"] == "assistant"]
    raw = "\n".join(texts).encode()
    return 8 * len(zlib.compress(raw, 9)) / max(1, len(raw))


def _warnings(train: SplitProfile, held_out: SplitProfile, base: BaseModel, max_length: int) -> tuple[str, ...]:
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
    if not base.has_chat_template:
        found.append(
            "the base model has no chat template; messages are joined by newlines and end with the end-of-text token"
        )
    if base.max_position_embeddings and max_length > base.max_position_embeddings:
        found.append(f"`dataset.max_length` {max_length} is over the model's {base.max_position_embeddings} positions")
    return tuple(found)
