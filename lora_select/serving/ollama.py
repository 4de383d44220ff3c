"""Ollama: llama.cpp underneath, so the adapter goes there as GGUF, named in a Modelfile."""

import shlex
from pathlib import Path

from lora_select.serving import llamacpp
from lora_select.serving.engine import Engine

MODELFILE = "Modelfile"


def command(folder: Path, base: str, rank: int) -> str:  # noqa: ARG001
    """Make a model of the Modelfile and run it."""
    return f"ollama create adapter -f {shlex.quote(str(folder / MODELFILE))} && ollama run adapter"


def modelfile(base: str) -> str:
    """The Modelfile: the base as Ollama finds it, and the adapter beside the file."""
    return f"FROM {base}\nADAPTER ./{llamacpp.ADAPTER}\n"


ENGINE = Engine(
    "ollama",
    "Ollama",
    "gguf",
    (),
    command,
    ignores=llamacpp.ENGINE.ignores | {"lora_alpha"},
    refuses=llamacpp.ENGINE.refuses,
    checked="by its code, never loaded; the GGUF is the one that llama.cpp runs",
    architectures=llamacpp.ENGINE.architectures,
)
