"""Settings that must stand before Prefect and MLflow are imported: no telemetry, a quiet console, patience at start-up."""

import os
import sys
import tempfile
import warnings
from pathlib import Path

DEFAULTS = {
    "DO_NOT_TRACK": "true",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "120",
    # The console is for people: Prefect's own lines stay in its log store. Its tracebacks are shown by `main`.
    "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_SERVER_LEVEL": "CRITICAL",
    "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}


def unwritable(folder: Path) -> str:
    """Why nothing can be written into a folder, which is made where it is missing; empty where something can.

    It is tried: for root every folder looks as if it could be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


GPU_NODES = ("/dev/nvidia0", "/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


def prepare() -> None:
    """Set what the user has not set."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    if not may_have_gpu():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed would warn in every process that it found none


def may_have_gpu() -> bool:
    """False where Linux shows no device of a GPU: then nothing need import torch, which takes seconds, to ask for one."""
    return sys.platform != "linux" or any(Path(node).exists() for node in GPU_NODES)


def leave_out(quantized: str | None) -> None:
    """Keep a process of our own, which computes and ends, from importing what others import for it and it never uses.

    DeepSpeed imports MLflow for its autotuner, and PEFT imports bitsandbytes, which makes ready to compile: together two fifths of the
    processor time in which a rank starts.

    Args:
        quantized: how the process holds the base, None where it needs no bitsandbytes.
    """
    for package in ("mlflow", *(() if quantized else ("bitsandbytes",))):
        sys.modules.setdefault(package, None)  # pyright: ignore[reportArgumentType]
