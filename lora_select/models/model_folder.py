"""What a model folder holds, looked at before anything is loaded: whole weights, once, of a causal language model, unquantised."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lora_select import records
from lora_select.errors import InputError
from lora_select.records.digests import key_of, library_digest

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
POINTER = b"version https://git-lfs"
PICKLES = (".bin", ".pt", ".pth", ".ckpt")
AGAIN = "download it again"
NARROW = ("I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")
"""Types of safetensors that no model is trained in."""
OTHER_HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "MaskedLM")


def check_kind_once(folder: Path, config: Mapping[str, Any], cache: Path) -> None:
    """As :func:`check_kind`, and a config that passed is remembered in `cache`: the look imports torch, which takes seconds.

    Raises:
        InputError: as there.
    """
    known = {"config": config, "transformers": version("transformers"), "library": library_digest()}
    note = cache / "kinds" / key_of(known)
    if not note.is_file():
        check_kind(folder, config)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.touch()


def check_kind(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse what is no causal language model, by the architecture and settings that its config names.

    Raises:
        InputError: an encoder, an encoder with a decoder, a model without a language model's head, a quantised one, or a config that
            transformers does not take.
    """
    from transformers.models.auto import configuration_auto, modeling_auto

    kind = str(config.get("model_type") or "")
    name = next(iter(config.get("architectures") or ()), kind)
    only = "only causal language models are adapted, name one of those"
    if kind not in configuration_auto.CONFIG_MAPPING_NAMES:
        raise InputError(
            f"{folder} is of model_type {kind or 'none'!r} (config.json), which this version of transformers does not know; name another model"
        )
    _refuse_unreadable(folder)
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if config.get("is_encoder_decoder") or (
        not causal and kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
    ):
        raise InputError(f"{folder} is an encoder with a decoder ({name}); {only}")
    if kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.get("is_decoder"):
        raise InputError(
            f"{folder} is an encoder ({name}): each of its tokens sees those that follow, so it would be shown the answers; {only}"
        )
    if not causal:
        raise InputError(f"{folder} is a {name}, which transformers does not load as a causal language model; {only}")
    if (name.endswith("Model") and not name.endswith("LMHeadModel")) or any(
        f"For{head}" in name for head in OTHER_HEADS
    ):
        raise InputError(f"{folder} is a {name}, which has no language model's head; bring the model with its head")
    _refuse_quantised(folder, config)


def _refuse_unreadable(folder: Path) -> None:
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except Exception as error:  # its fields are checked by code of each model
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"{folder / 'config.json'} is not taken by transformers ({reason}); {AGAIN}") from error


def refuse_unfilled(folder: str, loaded: Mapping[str, Any]) -> None:
    """Refuse a model of which transformers drew weights at random, since the files have none or others for them.

    Args:
        folder: where it was loaded from.
        loaded: transformers' account of the loading.

    Raises:
        InputError: names one of the weights.
    """
    missing = sorted(loaded.get("missing_keys") or ())
    others = sorted(str(key[0]) for key in loaded.get("mismatched_keys") or ())
    if missing or others:
        named = f"lack {missing[0]}" if missing else f"hold {others[0]} in another shape than its config.json says"
        raise InputError(
            f"the weights in {folder} {named} ({len(missing) + len(others)} of the model's would be drawn at random); {AGAIN}"
        )


def _refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    found = config.get("quantization_config") or config.get("text_config", {}).get("quantization_config")
    if not found:
        return
    method = str(found.get("quant_method", "unknown")) if isinstance(found, Mapping) else "unknown"
    if method == "bitsandbytes":
        stored = "int8" if found.get("load_in_8bit") else "nf4"
        raise InputError(
            f"{folder} is stored in {'8' if stored == 'int8' else '4'} bits by bitsandbytes; bring the model as it was before and set "
            f"`base_model.quantize: {stored}`: its weights are measured before they are quantised"
        )
    raise InputError(
        f"{folder} is quantised with {method} (quantization_config in config.json), which is not supported: its weights can be neither "
        "measured nor trained on; bring the unquantised model, and set `base_model.quantize: nf4` to train it in 4 bits"
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that make up the model, each whole.

    Raises:
        InputError: there are none, some are missing, cut, or pointers to a file elsewhere, or the model is there twice.
    """
    single, index = folder / SINGLE, folder / INDEX
    shards = sorted(p for p in folder.glob("*.safetensors") if SHARD.fullmatch(p.name))
    if single.is_file() and (index.is_file() or shards):
        raise InputError(
            f"{folder} holds its weights twice, as {SINGLE} and in {len(shards)} parts; remove one of the two, since they may differ"
        )
    if index.is_file():
        files = [folder / name for name in _listed(index)]
    elif shards:
        files = _numbered(folder, shards)
        raise InputError(f"{folder} has no {INDEX}, without which its {len(files)} parts are not read; {AGAIN}")
    else:
        files = [single] if single.is_file() else []
    if not files:
        raise InputError(f"{folder} has {_why_none(folder)}; bring the model as {SINGLE} or in numbered parts")
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise InputError(f"{folder}: {missing[0]} is missing ({len(missing)} of {len(files)} parts are); {AGAIN}")
    for file in files:
        parameters(file)
    return files


def parameters(file: Path) -> int:
    """Parameters in a safetensors file, from its header alone.

    Raises:
        InputError: it is a Git LFS pointer, cut, no safetensors file, or holds quantised weights.
    """
    from safetensors import SafetensorError, safe_open

    with file.open("rb") as stream:
        if stream.read(len(POINTER)) == POINTER:
            raise InputError(f"{file} is a Git LFS pointer and not the file itself; run `git lfs pull`, or {AGAIN}")
    try:
        with safe_open(file, "numpy") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            narrow = next((name for name, part in slices.items() if part.get_dtype() in NARROW), None)
            count = sum(math.prod(part.get_shape()) for part in slices.values())
    except SafetensorError as error:
        raise InputError(
            f"{file} ({file.stat().st_size:,} bytes) is cut, or no safetensors file: {error}; {AGAIN}"
        ) from error
    if narrow:
        raise InputError(
            f"{file} holds {narrow} as {slices[narrow].get_dtype()}, so the model is quantised, which is not supported; bring the "
            "unquantised model, and set `base_model.quantize: nf4` to train it in 4 bits"
        )
    return count


def refuse_pointers(folder: Path, names: Sequence[str]) -> None:
    """Refuse small files that are Git LFS pointers.

    Raises:
        InputError: one is.
    """
    for name in names:
        file = folder / name
        if file.is_file():
            with file.open("rb") as stream:
                if stream.read(len(POINTER)) == POINTER:
                    raise InputError(
                        f"{file} is a Git LFS pointer and not the file itself; run `git lfs pull`, or {AGAIN}"
                    )


def refuse_wide_tokenizer(folder: Path, vocab_size: int) -> None:
    """Refuse a tokenizer whose own vocabulary is larger than the embedding; tokens that were added are looked at where rows use them.

    Raises:
        InputError: it is, so it is another model's.
    """
    file = folder / "tokenizer.json"
    try:
        vocab = json.loads(file.read_text(encoding="utf-8"))["model"]["vocab"]
    except (OSError, ValueError, KeyError, TypeError):
        return  # loading the tokenizer will say what is wrong with it
    highest = max(vocab.values(), default=-1) if isinstance(vocab, Mapping) else len(vocab) - 1
    if highest >= vocab_size:
        raise InputError(
            f"the tokenizer in {folder} knows {highest + 1:,} tokens, the model has embeddings for {vocab_size:,}: it is another model's; "
            "copy the model's own tokenizer files into the folder"
        )


def refuse_adapter(folder: Path) -> None:
    """Refuse a folder with an adapter's files in it: transformers puts the adapter on whatever it loads from there.

    Raises:
        InputError: there are such files, beside a model or alone.
    """
    left = [name for name in ("adapter_config.json", "adapter_model.safetensors") if (folder / name).exists()]
    if not left:
        return
    if not any(p.name not in left for p in folder.glob("*.safetensors")):
        raise InputError(
            f"{folder} is an adapter and no base model; merge it into its base first, or name the base as `base_model.source`"
        )
    raise InputError(
        f"{folder} holds a model and {' and '.join(left)}, so the adapter would be put on the model again each time that it is loaded; "
        "if it is merged already, remove these files, else merge it"
    )


def _listed(index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{index} does not say which part holds which weight; {AGAIN}") from error


def _numbered(folder: Path, shards: Sequence[Path]) -> list[Path]:
    """All parts, by the number that each part's name says there are.

    Raises:
        InputError: one is missing.
    """
    total = max(int(SHARD.fullmatch(p.name).group(2)) for p in shards)  # pyright: ignore[reportOptionalMemberAccess]
    every = [folder / f"model-{number:05d}-of-{total:05d}.safetensors" for number in range(1, total + 1)]
    for file in every:
        if not file.is_file():
            raise InputError(f"{folder}: {file.name} is missing; {AGAIN}")
    return every


def _why_none(folder: Path) -> str:
    pickles = [p.name for p in folder.glob("*") if p.suffix in PICKLES]
    others = [p.name for p in folder.glob("*.safetensors")]
    if pickles:
        return f"only {pickles[0]}, and pickled weights are never read"
    return f"no {SINGLE}, only {others[0]}" if others else "no weights"


def digest(file: Path, cache: Path) -> str:
    """SHA-256 of a file, remembered by path, size and time of change: a 500 MB model is hashed once."""
    stat = file.stat()
    key = hashlib.sha256(f"{file.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()
    note = cache / "digests" / key
    if stat.st_size < 2**20:
        return records.sha256_file(file)
    try:
        return note.read_text()
    except FileNotFoundError:
        made = records.sha256_file(file)
        note.parent.mkdir(parents=True, exist_ok=True)
        records.write_text(note, made)
        return made
