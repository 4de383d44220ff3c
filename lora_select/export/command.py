"""`lora-select export`: convert, check in a new process, and keep nothing that is not the adapter's function."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select import models, serving
from lora_select.audit.run_entries import adapter_folder
from lora_select.errors import InputError, WorldError, require
from lora_select.export import mlx_format
from lora_select.export.check_process import LOGITS, compare
from lora_select.export.plain_lora import Converted, rewrite_lora, write_lora
from lora_select.records import write_text
from lora_select.records.retention import IN_BASE, KEPT_MOMENTS, KEPT_TASKS, TASKS_IN_BASE
from lora_select.serving import ollama
from lora_select.serving.folder import PeftFolder

TIMEOUT_SECONDS = 1800
ROUNDING = 2e-4
"""Of a logit in fp32: reductions in another order differ by some 1e-4."""
EXACT_SHARE, TRUNCATED_SHARE = 1e-2, 10
"""Largest difference of a logit over what the adapter moves it by; of a truncation in units of its `max_error`."""
FOLDED = frozenset({"use_rslora", "rank_pattern", "alpha_pattern", "lora_alpha", "target_modules"})
"""What is folded into the factors of a LoRA without a change of its rank."""
UNREPEATABLE = ("pissa_niter", "corda", "loftq", "lora_ga")
"""Inits that PEFT does not make again as they were when it loads a folder: the trained function is not in the folder."""


@final
@dataclass(frozen=True)
class Exported:
    """What was written: in words, the largest difference of a logit to the adapter's, and how it is served where an engine was named.

    `warnings` say what engines would have made of the folder as it was.
    """

    folder: Path
    form: str
    words: str
    max_logit_difference: float
    function_change: float
    rank: int | None
    command: str | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """For a person."""
        lines = [f"{self.words}; in a new process logits differ by {self.max_logit_difference:.2g} (the adapter moves them by "
                 f"{self.function_change:.2g})"]  # fmt: skip
        lines += [f"Note: {warning}." for warning in self.warnings]
        return "\n".join([*lines, f"serve it: {self.command}"] if self.command else lines)


def export(
    run: Path,
    to: str | None,
    out: Path,
    *,
    rank: int | None,
    max_error: float,
    base: str | None = None,
    serve: str | None = None,
    gguf: Path | None = None,
) -> Exported:
    """Export the adapter of a run (or a PEFT folder).

    Args:
        run: a run's folder with `adapter/`, or a PEFT folder.
        to: `lora`, `gguf`, `mlx` or `merged`; None for the form that `serve` takes, `lora` without one.
        out: new folder.
        rank: of the LoRA; None for its own where it is one already, else the least within `max_error`.
        max_error: largest ||dW - B A|| / ||dW||, no unit.
        base: where the base model is, when the adapter's config does not say.
        serve: a name in `serving.ENGINES`.
        gguf: the base as GGUF, which is then checked to be the same model.

    Raises:
        InputError: no adapter there or one that is not sound, `out` exists, the engine cannot take it, or the error passes the limit.
        WorldError: a file of the adapter was changed since it was made (it is named), or a new process saw another function than the adapter's.
    """
    # transformers asks DeepSpeed when it saves, which warns that it found none
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    form = _form(to, serve)
    if form == "gguf":
        require("gguf", "quant", "an export to GGUF")
    folder = serving.read_folder(adapter_folder(run))
    _refuse_unsound(folder, form)
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out} exists and is not empty; name a new folder with --out")
    source = base or folder.config.get("base_model_name_or_path")
    if not source:
        raise InputError(f"{folder.path} does not name its base model; name it with --base")
    path = Path(models.resolve(source).path)
    _refuse_base(path, form, gguf, folder.layers())
    out.mkdir(parents=True, exist_ok=True)
    try:
        return _export(run, folder, form, out, source, path, rank, max_error, serve, gguf)
    except BaseException:
        shutil.rmtree(out)
        raise


def _export(
    run: Path,
    folder: PeftFolder,
    form: str,
    out: Path,
    source: str,
    path: Path,
    rank: int | None,
    max_error: float,
    serve: str | None,
    gguf: Path | None,
) -> Exported:
    model = models.with_adapter(models.load_model(str(path)), folder.path)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".export-") as temporary:
        checked = out if form in ("lora", "merged") else Path(temporary)
        _write_probe(model, checked / LOGITS)
        if form == "merged":
            own_head = models.write_merged(model, str(path), out)
            _carry((run / KEPT_MOMENTS, path / IN_BASE), out / IN_BASE)
            _carry((run / KEPT_TASKS, path / TASKS_IN_BASE), out / TASKS_IN_BASE)
            more = ", and with an output head of its own, where the base's is its embedding" if own_head else ""
            converted, words, exact = None, f"the base with the adapter merged into it{more}", True
        else:
            converted = _convert(folder, model, path, checked, source, rank, max_error)
            _refuse_rank(serve, converted.rank)
            words, exact = _words(converted), converted.method == "exact"
        difference, change = _check(str(path), checked, "merged" if form == "merged" else "lora")
        (checked / LOGITS).unlink()
        _refuse_other_function(difference, tolerance(change, EXACT_SHARE if exact else TRUNCATED_SHARE * max_error))
        words = {"gguf": "GGUF of ", "mlx": "MLX-LM's layout of "}.get(form, "") + words
        words += "; the LoRA that it was made from was checked, not the file itself" if form in ("gguf", "mlx") else ""
        _rewrite(form, checked, path, out)
    command = None
    if serve is not None:
        named = str(gguf) if gguf else source
        command = serving.serve_command(serve, out, named, converted.rank if converted else 0)
        if serve == ollama.ENGINE.name:
            write_text(out / ollama.MODELFILE, ollama.modelfile(str(gguf.resolve()) if gguf else source))
    facts = {"to": form, "description": words, "max_logit_difference": difference, "function_change": change}
    facts |= {"serve": serve, "command": command}
    write_text(out / "export.json", json.dumps(facts, indent=2, sort_keys=True) + "\n")
    held = _quantised(run)
    notes = [f"trained on a {held} base, checked here on the base as published"] if held else []
    rank_written = converted.rank if converted else None
    notes += [*(mlx_format.rope_unread(path) if form == "mlx" else ()), *serving.warnings(folder)]
    return Exported(out, form, words, difference, change, rank_written, command, tuple(notes))


def _form(to: str | None, serve: str | None) -> str:
    if serve is None:
        return to or "lora"
    engine = serving.ENGINES[serve]
    if to not in (None, engine.form):
        raise InputError(f"{engine.title} is given --to {engine.form}, not --to {to}; leave --to out")
    return engine.form


def _refuse_unsound(folder: PeftFolder, form: str) -> None:
    found = [*serving.faults(folder), *(() if form == "merged" else serving.beside(folder))]
    if folder.init.startswith(UNREPEATABLE):
        found.append(
            f"`init_lora_weights` {folder.init!r} changed the base in training, and PEFT does not make the same start again when it "
            "loads the folder; save it with PEFT's `path_initial_model_for_weight_conversion`"
        )
    if found:
        raise InputError(f"{folder.path}: " + "\n".join(found))


def _refuse_base(path: Path, form: str, gguf: Path | None, layers: tuple[str, ...]) -> None:
    from lora_select.export.gguf_format import check_base, tensor_names

    if form == "gguf":
        tensor_names(path, layers)
        if gguf is not None:
            check_base(gguf, path)
    elif gguf is not None:
        raise InputError(f"--gguf names the base of --to gguf, and this is --to {form}; leave it out")


def _refuse_rank(serve: str | None, rank: int) -> None:
    if serve is not None and (ranks := serving.ENGINES[serve].ranks) and rank > max(ranks):
        raise InputError(
            f"{serving.ENGINES[serve].title} serves adapters up to rank {max(ranks)}, and this one needs {rank}; lower it with --rank "
            "and --max-error, or take --serve merged"
        )


def tolerance(change: float, share: float) -> float:
    """Largest difference of a logit that is not another function: never so much that the bare base would pass.

    Args:
        change: by how much the adapter moves a logit at most.
        share: of it that may be lost, no unit.

    >>> tolerance(2.0, 0.01), tolerance(1e-4, 0.01)
    (0.0202, 5e-05)
    """
    return min(ROUNDING + share * change, change / 2)


def _refuse_other_function(difference: float, limit: float) -> None:
    if not difference <= limit:
        raise WorldError(
            f"in a new process the export's logits differ from the adapter's by {difference:.3g}, over the limit of "
            f"{limit:.3g}; nothing is kept"
        )


def _convert(
    folder: PeftFolder, model: Any, base: Path, out: Path, source: str, rank: int | None, max_error: float
) -> Converted:
    """Plain LoRA keeps its rank; what is another function of its factors goes through its update's singular values."""
    plain = folder.is_lora and set(serving.departures(folder)) <= FOLDED
    if plain and rank in (None, max(folder.rank(layer) for layer in folder.layers())):
        return rewrite_lora(folder, model, out, source)
    pristine = models.load_model(str(base)) if folder.is_lora and folder.changes_base else None
    return write_lora(model, out, source, rank=rank, max_error=max_error, pristine=pristine)


def _words(made: Converted) -> str:
    left = "" if made.method == "exact" and made.error == 0 else f": ||dW - B A|| / ||dW|| = {made.error:.2g}"
    return f"plain LoRA, rank {made.rank} and alpha {made.rank} on {made.layers} layers, {made.method}{left}"


def _rewrite(form: str, lora: Path, base: Path, out: Path) -> None:
    from lora_select.export.gguf_format import write_gguf
    from lora_select.export.mlx_format import write_mlx

    if form == "gguf":
        write_gguf(lora, base, out)
    elif form == "mlx":
        write_mlx(lora, base, out)


def _quantised(run: Path) -> str | None:
    """How the base of a run was held, where the run's config is at hand."""
    config = run / "config.json"
    told = json.loads(config.read_text(encoding="utf-8")) if config.is_file() else {}
    base = told.get("base_model")  # the config of a model, which trainers leave beside their adapters, has none
    return base.get("quantize") if isinstance(base, dict) else None


def _write_probe(model: Any, file: Path) -> None:
    """Logits of the adapter on two rows of ids from the whole vocabulary."""
    import torch
    from safetensors.torch import save_file

    vocabulary = int(model.config.get_text_config().vocab_size)
    ids = torch.randint(0, vocabulary, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits
    save_file({"ids": ids, "logits": logits.float().contiguous()}, file)


def _carry(sources: Sequence[Path], target: Path) -> None:
    """What of its tasks goes with a merged model into its next training: the run's own file, which holds the base's, else the base's."""
    for source in sources:
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            return


def _check(base: str, out: Path, to: str) -> tuple[float, float]:
    """What a new process sees: (difference to the adapter's logits, the adapter's to the base's)."""
    command = [sys.executable, "-m", "lora_select.export.check_process", base, str(out), to]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=TIMEOUT_SECONDS)
    if run.returncode:
        last = "\n  ".join(run.stderr.strip().splitlines()[-3:])
        raise WorldError(f"the export could not be loaded in a new process:\n  {last}")
    return compare(run.stdout)
