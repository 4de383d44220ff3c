"""`lora-select export`: convert, check in a new process, and keep nothing that is not the adapter's function."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.audit.runs import adapter_folder
from lora_select.errors import InputError, WorldError
from lora_select.export.check import LOGITS, compare
from lora_select.export.lora import write_lora
from lora_select.records import write_text

TIMEOUT_SECONDS = 1800
ROUNDING = 2e-3
"""Largest difference of a logit for an exact export in fp32."""


def export(run: Path, to: str, out: Path, *, rank: int | None, max_error: float, base: str | None = None) -> str:
    """Export the adapter of a run (or a PEFT folder) and say in one line what it is.

    Args:
        run: a run's folder with `adapter/`, or a PEFT folder.
        to: `lora` or `merged`.
        out: new folder.
        rank: of the LoRA; None for the least within `max_error`.
        max_error: largest ||dW - B A|| / ||dW||, no unit.
        base: where the base model is, when the adapter's config does not say.

    Raises:
        InputError: no adapter there, `out` exists, or the error passes the limit.
        WorldError: a file of the adapter was changed since it was made (it is named), or a new process saw another function than the adapter's.
    """
    os.environ.setdefault(
        "DS_ACCELERATOR", "cpu"
    )  # transformers asks DeepSpeed when it saves, which warns that it found none
    folder = adapter_folder(run)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not empty; name a new folder with --out")
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    source = base or config.get("base_model_name_or_path")
    if not source:
        raise InputError(f"{folder} does not name its base model; name it with --base")
    path = models.resolve(source).path
    model = models.with_adapter(models.load_model(path), folder)
    out.mkdir(parents=True, exist_ok=True)
    _write_probe(model, out / LOGITS)
    try:
        if to == "lora":
            made = write_lora(model, out, source, rank=rank, max_error=max_error)
            words = f"plain LoRA, rank {made.rank} and alpha {made.rank} on {made.layers} layers, {made.method}: "
            words += f"||dW - B A|| / ||dW|| = {made.error:.2g}"
            exact = made.method == "exact"
        else:
            _write_merged(model, path, out)
            words, exact = "the base with the adapter merged into it", True
        difference, change = _check(path, out, to)
    except BaseException:
        shutil.rmtree(out)
        raise
    (out / LOGITS).unlink()
    limit = ROUNDING if exact else max(ROUNDING, 10 * max_error * change)
    facts = {"to": to, "description": words, "max_logit_difference": difference, "function_change": change}
    if not difference <= limit:
        shutil.rmtree(out)
        raise WorldError(
            f"in a new process the export's logits differ from the adapter's by {difference:.3g}, over the limit of "
            f"{limit:.3g}; nothing is kept"
        )
    write_text(out / "export.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    held = _quantised(run)
    note = f"; trained on a {held} base, checked here on the base as published" if held else ""
    return f"{words}; in a new process logits differ by {difference:.2g} (the adapter moves them by {change:.2g}){note}"


def _quantised(run: Path) -> str | None:
    """How the base of a run was held, where the run's config is at hand."""
    config = run / "config.json"
    return json.loads(config.read_text(encoding="utf-8"))["base_model"]["quantize"] if config.is_file() else None


def _write_probe(model: Any, file: Path) -> None:
    """Logits of the adapter on two rows of ids from the whole vocabulary."""
    import torch
    from safetensors.torch import save_file

    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(0, vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    save_file({"ids": ids, "logits": logits.float().contiguous()}, file)


def _write_merged(model: Any, base: str, out: Path) -> None:
    try:
        merged = model.merge_and_unload()
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise InputError(f"PEFT cannot merge this adapter: {' '.join(str(error).split())[:160]}") from error
    merged.save_pretrained(str(out))
    models.load_tokenizer(base).save_pretrained(str(out))


def _check(base: str, out: Path, to: str) -> tuple[float, float]:
    """What a new process sees: (difference to the adapter's logits, difference to the base's)."""
    command = [sys.executable, "-m", "lora_select.export.check", base, str(out), to]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    if run.returncode:
        last = "\n  ".join(run.stderr.strip().splitlines()[-3:])
        raise WorldError(f"the export could not be loaded in a new process:\n  {last}")
    return compare(run.stdout)
