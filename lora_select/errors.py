"""What a user can mend, and what the world did: shown as a sentence with an exit code, never as a traceback."""

import importlib
import importlib.util
from typing import Any

EXTRAS = {
    "OpenSSL": "evidence",
    "bitsandbytes": "quant",
    "cryptography": "evidence",
    "cyclonedx": "evidence",
    "datasets": "data",
    "deepspeed": "train",
    "detect_secrets": "gate",
    "gguf": "quant",
    "jsonschema": "metrics",
    "lm_eval": "lm-eval",
    "matplotlib": "report",
    "mcp": "mcp",
    "mlcroissant": "evidence",
    "mlflow": "track",
    "model_signing": "evidence",
    "pandas": "data",
    "prefect": "flows",
    "py3langid": "gate",
    "pynvml": "train",
    "referencing": "metrics",
    "requests": "flows",
    "rouge_score": "metrics",
    "sacrebleu": "metrics",
    "scipy": "gate",
    "sklearn": "gate",
}
"""Module that the core does without -> the smallest extra of lora-select that brings it."""


class InputError(ValueError):
    """Bad input or config. The message names the rule, the value, the place and the way out."""


class WorldError(RuntimeError):
    """The machine or a service failed (disk, port, server, rank). The message names the place and the way out."""


def require(module: str, extra: str, purpose: str, instead: str = "") -> None:
    """Stop where an optional package is missing.

    Args:
        module: what will be imported.
        extra: the extra of lora-select that brings it.
        purpose: what needs it, as the subject of the sentence.
        instead: what to do without it.

    Raises:
        InputError: one sentence with the line for pip.
    """
    if importlib.util.find_spec(module) is None:
        without = f", or {instead}" if instead else ""
        raise InputError(f"{purpose} needs {module}: pip install 'lora-select[{extra}]'{without}")


def missing(error: ModuleNotFoundError, purpose: str) -> InputError | None:
    """The sentence for an import that failed in the middle of `purpose`; None where the module is of no extra."""
    module = (error.name or "").partition(".")[0]
    if module not in EXTRAS:
        return None
    return InputError(f"{purpose} needs {module}: pip install 'lora-select[{EXTRAS[module]}]'")


def library(module: str, package: str) -> Any:
    """An optional library, or one sentence.

    Raises:
        MissingLibraryError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingLibraryError(f"{package} is not installed: pip install 'lora-select[evidence]'") from error


class MissingLibraryError(ImportError):
    """A form of the evidence needs a library that is not here; the message names the pip line."""
