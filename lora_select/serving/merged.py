"""Merged: a model in Hugging Face layout with the adapter added to its weights, for engines that take no adapters."""

import shlex
from pathlib import Path

from lora_select.serving.engine import Engine


def command(folder: Path, base: str, rank: int) -> str:  # noqa: ARG001
    """Any engine that serves models in Hugging Face layout."""
    return f"transformers serve {shlex.quote(str(folder))}"


ENGINE = Engine(
    "merged",
    "a merged model",
    "merged",
    (),
    command,
    ignores=frozenset(),
    refuses=frozenset(),
    checked="transformers loads the merged model in a new process: logits against PEFT",
)
