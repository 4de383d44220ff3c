"""What a program hands over in memory, as sources that a run can name: a loaded model's folder, rows in a file."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from lora_select import models, records
from lora_select.errors import InputError

ROWS = "rows"
"""The folder, below the runs, of rows that came from memory; each file is named by the digest of its bytes."""
SAMPLES = 64
"""Entries of each tensor that are compared with the folder's."""


def model_source(model: Any, tokenizer: Any = None) -> str:
    """The source that names a model: a string as it is, a loaded model's folder or hub id.

    Args:
        model: a string, a path, or a `transformers.PreTrainedModel`.
        tokenizer: the tokenizer that goes with a loaded model.

    Raises:
        InputError: it is no model, came from no folder, or its weights are not the folder's any more.
    """
    if isinstance(model, str | Path):
        if tokenizer is not None:
            raise InputError("`tokenizer` goes with a loaded model; a model named by its source brings its own")
        return str(model)
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        what = type(model).__name__
        more = "; hand over the base model, before an adapter is put on it" if hasattr(model, "peft_config") else ""
        raise InputError(
            f"`model` is a {what}: name a hub id, a folder, a .gguf file or sample:NAME, or hand over a loaded PreTrainedModel{more}"
        )
    if getattr(model, "peft_config", None) or getattr(model, "_hf_peft_config_loaded", False):
        raise InputError("`model` carries an adapter; hand over the base model, before an adapter is put on it")
    source = model.config._name_or_path or ""
    if not source:
        raise InputError(
            "the loaded model came from no folder, so nothing identifies it: save model and tokenizer with "
            "`save_pretrained(FOLDER)` and name FOLDER"
        )
    base = models.resolve(source, getattr(model.config, "_commit_hash", None) if not Path(source).exists() else None)
    _refuse_changed(model, Path(base.path))
    if tokenizer is not None:
        _refuse_other(tokenizer, base.path)
    return base.path if Path(source).exists() else source


def dataset_source(dataset: Any, root: Path) -> str:
    """The source that names a dataset: a string as it is, rows in memory written once to a file below `root`.

    A `datasets.Dataset` becomes Parquet, other rows JSON lines.

    Raises:
        InputError: rows that are no mappings, hold what JSON cannot, or an iterator that is spent.
    """
    if isinstance(dataset, str | Path):
        return str(dataset)
    folder = root / ROWS
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(dataset, "to_parquet"):
        if hasattr(dataset, "columns") and hasattr(dataset, "itertuples"):
            return _json_lines(dataset.to_dict("records"), folder)
        return _parquet(dataset, folder)
    if isinstance(dataset, Mapping):
        names = ", ".join(map(str, dataset))
        raise InputError(
            f"`dataset` is a mapping of {names}: hand over one split, such as dataset[{next(iter(dataset), 'train')!r}]"
        )
    if not isinstance(dataset, Iterable):
        raise InputError(
            f"`dataset` is a {type(dataset).__name__}: name a path or a hub id, or hand over a datasets.Dataset or rows (mappings)"
        )
    return _json_lines(dataset, folder)


def _json_lines(rows: Iterable[Any], folder: Path) -> str:
    lines = []
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, Mapping):
            raise InputError(
                f"row {number} of `dataset` is a {type(row).__name__}; rows are mappings, such as {{'prompt': ..., 'completion': ...}}"
            )
        try:
            lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
        except (TypeError, ValueError) as error:
            raise InputError(
                f"row {number} of `dataset` holds what is no text, number, list or mapping: {error}"
            ) from error
    if not lines:
        raise InputError("`dataset` gave no row; an iterator that was read before is spent: hand over a list")
    text = "".join(lines)
    file = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.jsonl"
    if not file.is_file():
        records.write_text(file, text)
    return str(file)


def _parquet(dataset: Any, folder: Path) -> str:
    if not len(dataset):
        raise InputError("`dataset` has no row")
    temporary = folder / f".{os.getpid()}.parquet"
    try:
        dataset.to_parquet(str(temporary))
        file = folder / f"{records.sha256_file(temporary)[:24]}.parquet"
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
    return str(file)


def _refuse_changed(model: Any, folder: Path) -> None:
    """Compare entries of every tensor with the folder's, in the type that the model was loaded in."""
    import torch
    from safetensors import safe_open

    held = dict(model.state_dict())
    compared = 0
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(str(file), framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118  (no mapping)
                tensor = held.get(name)
                if tensor is None or not tensor.is_floating_point():
                    continue
                there = stored.get_tensor(name).flatten()
                here = tensor.detach().flatten()
                if here.numel() != there.numel():
                    raise InputError(_changed(folder, name))
                step = max(1, here.numel() // SAMPLES)
                compared += 1
                if not torch.equal(here[::step].cpu().float(), there[::step].to(tensor.dtype).float()):
                    raise InputError(_changed(folder, name))
    if not compared:
        raise InputError(
            f"none of the loaded model's weights has a counterpart in {folder}, so it cannot be told whether they are the same; "
            "save model and tokenizer with `save_pretrained(FOLDER)` and name FOLDER"
        )


def _changed(folder: Path, name: str) -> str:
    return (
        f"the loaded model is not the one in {folder} any more ({name} differs): save model and tokenizer with "
        "`save_pretrained(FOLDER)` and name FOLDER"
    )


def _refuse_other(tokenizer: Any, path: str) -> None:
    own = models.load_tokenizer(path)
    for what, same in (
        ("vocabulary", tokenizer.get_vocab() == own.get_vocab()),
        ("chat template", getattr(tokenizer, "chat_template", None) == getattr(own, "chat_template", None)),
    ):
        if not same:
            raise InputError(
                f"`tokenizer` has another {what} than the model's folder {path}, which is what is measured: save both with "
                "`save_pretrained(FOLDER)` and name FOLDER"
            )
