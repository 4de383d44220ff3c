"""The record of the matrix: one cell a (variant, setting, check), written as soon as it is known."""

import importlib.metadata
import json
from collections.abc import Mapping
from pathlib import Path

from lora_select.records import write_text

WORKS, REFUSED, NOT_RUN = "works", "refused: ", "not run: "
SINGLE = ("llama/fp32", "llama/bf16", "llama/nf4", "llama/int8", "qwen/fp32", "gemma/fp32", "gpt2/fp32", "bert/fp32")
"""Settings of one process: a tiny model and how its base is held."""
RANKS = tuple(f"llama/{held}zero{stage}" for held in ("", "nf4-", "int8-") for stage in (0, 2, 3))
"""Settings of two DeepSpeed ranks over gloo: how the base is held (fp32 where nothing is said) and the ZeRO stage."""
CHECKS = ("train", "resume", "reload", "merge", "unmerge", "mix", "export")
"""In the order in which they are done; without `train` the others are not run."""
RANK_CHECKS = ("train", "save")
PACKAGES = ("peft", "transformers", "torch", "deepspeed", "bitsandbytes")
FILE = Path(__file__).with_name("matrix.json")
Cells = dict[str, dict[str, str]]
"""variant -> `setting/check` -> `works`, `refused: ...` or `not run: ...`."""


def every_key() -> tuple[str, ...]:
    """Every `setting/check`, in order."""
    single = [f"{setting}/{check}" for setting in SINGLE for check in CHECKS]
    return (*single, *(f"{setting}/{check}" for setting in RANKS for check in RANK_CHECKS))


def read(file: Path = FILE) -> Cells:
    """The cells of a matrix file; none where there is no file."""
    return json.loads(file.read_text(encoding="utf-8"))["cells"] if file.is_file() else {}


def recorded(file: Path = FILE) -> dict[str, str]:
    """The versions that the cells were measured with; none where there is no file."""
    return json.loads(file.read_text(encoding="utf-8"))["versions"] if file.is_file() else {}


def write(cells: Mapping[str, Mapping[str, str]], file: Path = FILE) -> None:
    """Write the matrix with the versions it holds for, atomically.

    Raises:
        ValueError: a cell is none of the three things a cell can be.
    """
    for variant, row in cells.items():
        for key, cell in row.items():
            if cell != WORKS and not cell.startswith((REFUSED, NOT_RUN)):
                raise ValueError(
                    f"cell {variant} {key} is {cell!r}; it must be works, refused: reason or not run: reason"
                )
    text = json.dumps({"versions": versions(), "cells": cells}, indent=1, sort_keys=True, ensure_ascii=False)
    write_text(file, text + "\n")


def versions() -> dict[str, str]:
    """The installed versions that the cells depend on; `none` for what is missing."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name).partition("+")[0]
        except importlib.metadata.PackageNotFoundError:
            found[name] = "none"
    return found
