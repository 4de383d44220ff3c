"""A GGUF file as a safetensors folder, dequantised once."""

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from lora_select.errors import InputError
from lora_select.models.model_folder import digest as digest_of

DEQUANTISED_BYTES_PER_GGUF_BYTE = 8
"""Q4 weights become fp32: eight times the bytes."""


def dequantised(gguf: Path, cache: Path) -> Path:
    """The safetensors folder of a GGUF file, made once: by the first of several processes to end. A kill leaves only a temporary folder behind."""
    digest = digest_of(gguf, cache)
    folder = cache / "models" / f"{gguf.stem}-{digest[:16]}"
    if (folder / "config.json").is_file():
        return folder
    needed = gguf.stat().st_size * DEQUANTISED_BYTES_PER_GGUF_BYTE
    folder.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder.parent).free
    if free < needed:
        raise InputError(
            f"dequantising {gguf.name} needs about {needed / 2**30:.1f} GiB in {folder.parent}, {free / 2**30:.1f} are free; "
            "free some or set LORA_SELECT_CACHE"
        )
    temporary = Path(tempfile.mkdtemp(prefix=".dequantising-", dir=folder.parent))
    try:
        dequantise(gguf, temporary)
        os.replace(temporary, folder)
    except OSError:
        if not (folder / "config.json").is_file():  # another process was first, and its folder is as good
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def dequantise(gguf: Path, folder: Path) -> None:
    """Write the model and its tokenizer, in fp32, into a folder.

    Raises:
        InputError: transformers cannot read the file.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    parent = str(gguf.parent)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(parent, gguf_file=gguf.name, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(parent, gguf_file=gguf.name)
    except (ValueError, KeyError, OSError, NotImplementedError, AttributeError, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"{gguf.name} cannot be read: {reason}; transformers does not know this GGUF's architecture or file layout, "
            "use the model's safetensors folder instead"
        ) from error
    # The tensors are plain now; a left-over quantisation config would make every later load try to quantise them.
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
