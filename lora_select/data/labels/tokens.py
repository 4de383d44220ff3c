"""Token rows: read, batch, and the loss on their labels. Labels are masked by position, never by the padding id."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

IGNORED = -100


@dataclass(frozen=True)
class TokenRow:
    """One row as the model sees it: `label_mask[i]` says whether token i is a target (predicted from tokens < i)."""

    row_id: str
    input_ids: tuple[int, ...]
    label_mask: tuple[bool, ...]


def read_rows(path: Path) -> list[TokenRow]:
    """The rows of a tokens Parquet file, in file order."""
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    columns = (table.column(name).to_pylist() for name in ("row_id", "input_ids", "label_mask"))
    return [TokenRow(row_id, tuple(ids), tuple(mask)) for row_id, ids, mask in zip(*columns, strict=True)]


def write_rows(path: Path, rows: Sequence[TokenRow]) -> None:
    """Write rows for :func:`read_rows`; equal rows give equal bytes."""
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema(
        [
            ("row_id", pyarrow.string()),
            ("input_ids", pyarrow.list_(pyarrow.int32())),
            ("label_mask", pyarrow.list_(pyarrow.bool_())),
        ]
    )
    columns = [
        [row.row_id for row in rows],
        [list(row.input_ids) for row in rows],
        [list(row.label_mask) for row in rows],
    ]
    pyarrow.parquet.write_table(pyarrow.table(columns, schema=schema), path)


def collate(rows: Sequence[TokenRow], pad_id: int) -> "dict[str, Tensor]":
    """Pad rows on the right into one batch.

    Args:
        rows: at least one row.
        pad_id: fills `input_ids`; it never decides what is a label.

    Returns:
        `input_ids`, `attention_mask` and `labels`, each int64 of shape (rows, longest row); labels are -100 where the
        token is padding or no target.
    """
    import torch

    width = max(len(row.input_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
    labels = torch.full((len(rows), width), IGNORED, dtype=torch.int64)
    for index, row in enumerate(rows):
        length = len(row.input_ids)
        ids = torch.tensor(row.input_ids, dtype=torch.int64)
        input_ids[index, :length] = ids
        attention_mask[index, :length] = 1
        mask = torch.tensor(row.label_mask, dtype=torch.bool)
        labels[index, :length] = torch.where(mask, ids, IGNORED)
    return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}


def label_loss(model: Any, batch: "dict[str, Tensor]") -> "tuple[Tensor, Tensor]":
    """Negative log-likelihood of the labels, with logits only where some row of the batch has a label.

    With vocabularies of 50,000 and more the output layer is a large share of the work, and prompts need none of it.
    The cross-entropy is taken in float32 (float64 for a float64 model).

    Args:
        model: a causal language model, or a wrapper with the same forward.
        batch: as :func:`collate` makes it, on the model's device; everything but `labels` is given to the model.

    Returns:
        The summed loss of each row in nats, of shape (rows,), and the number of its label tokens, int64.
    """
    import torch
    from torch.nn import functional

    targets = batch["labels"][:, 1:]
    wanted = targets.ne(IGNORED)
    places = wanted.any(dim=0).nonzero().squeeze(-1)  # positions that predict a label in at least one row
    inputs = {name: value for name, value in batch.items() if name != "labels"} | {"use_cache": False}
    if places.numel() == 0:
        places = targets.new_zeros(1)
    if _keeps_logits(model):
        logits = model(**inputs, logits_to_keep=places).logits
    else:
        logits = model(**inputs).logits[:, places]
    kept = targets[:, places]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    nll = functional.cross_entropy(logits.flatten(0, 1), kept.flatten(), ignore_index=IGNORED, reduction="none")
    return nll.view_as(kept).sum(dim=1), wanted.sum(dim=1).to(torch.int64)


def _keeps_logits(model: Any) -> bool:
    """Whether the model computes logits at given positions only; wrappers (PEFT, DeepSpeed) are looked through."""
    return "logits_to_keep" in inspect.signature(unwrapped(model).forward).parameters


def unwrapped(model: Any) -> Any:
    """The causal language model inside DeepSpeed's engine and PEFT's wrapper."""
    while hasattr(model, "module"):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
