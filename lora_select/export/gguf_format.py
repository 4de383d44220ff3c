"""A plain LoRA as GGUF, as llama.cpp reads it, and whether a GGUF holds the base that the adapter was trained on."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select import serving
from lora_select.errors import InputError
from lora_select.serving.folder import CONFIG, FACTOR, PREFIX, WEIGHTS
from lora_select.serving.llamacpp import ADAPTER, ARCHITECTURES

if TYPE_CHECKING:
    from torch import Tensor


def write_gguf(lora: Path, base: Path, out: Path) -> Path:
    """Write `adapter.gguf` into `out`.

    Names and the order of rows follow llama.cpp's `convert_lora_to_gguf.py`: for Llama's rotary embedding the two halves of every head of
    q and k are interleaved. Tensors are float32.

    Args:
        lora: a PEFT folder in the safe form.
        base: the base model's folder.
        out: folder for the file.

    Raises:
        InputError: a base of another architecture, or an adapter on layers that llama.cpp cannot adapt.
    """
    import gguf
    from safetensors.torch import load_file

    config = text_config(base)
    kind, rotates = architecture(base)
    factors = load_file(lora / WEIGHTS)
    matches = {name: match for name in sorted(factors) if (match := FACTOR.fullmatch(name))}
    assert len(matches) == len(factors)
    names = tensor_names(base, sorted({match["layer"].removeprefix(PREFIX) for match in matches.values()}))
    writer = gguf.GGUFWriter(out / ADAPTER, kind)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    alpha = json.loads((lora / CONFIG).read_text(encoding="utf-8"))["lora_alpha"]
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, float(alpha))
    for name, match in matches.items():
        tensor, layer = factors[name], match["layer"].removeprefix(PREFIX)
        if match["side"] == "B" and rotates:
            tensor = interleaved(tensor, layer, config)
        writer.add_tensor(f"{names[layer]}.lora_{match['side'].lower()}", tensor.float().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out / ADAPTER


def tensor_names(base: Path, layers: Iterable[str]) -> dict[str, str]:
    """llama.cpp's name of each adapted layer's weight.

    Args:
        base: the base model's folder.
        layers: names in the base model.

    Raises:
        InputError: a base of another architecture, or the first layer that llama.cpp cannot adapt.
    """
    import gguf

    config, kind = text_config(base), architecture(base)[0]
    known = gguf.get_tensor_name_map(_numbered(kind), int(config["num_hidden_layers"]))
    found = {}
    for layer in layers:
        target = known.get_name(f"{layer}.weight", try_suffixes=(".weight",))
        tied = layer == "lm_head" and config.get("tie_word_embeddings", False)
        if target is None or layer.endswith("embed_tokens") or tied:
            why = "the output head is the embedding" if tied else "it has no such layer, or takes no adapter on it"
            raise InputError(
                f"llama.cpp cannot adapt {layer} of {kind}: {why}; train without it, or export --to merged"
            )
        found[layer] = target
    return found


def interleaved(b: "Tensor", layer: str, config: dict[str, Any]) -> "Tensor":
    """B (m, r) of q or k with the rows of each head in llama.cpp's order: 0, d/2, 1, d/2 + 1, ...; others as they are."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}.get(layer.rpartition(".")[2])
    if heads is None:
        return b
    count = int(config.get(heads) or config["num_attention_heads"])
    return b.reshape(count, 2, b.shape[0] // count // 2, b.shape[1]).swapaxes(1, 2).reshape(b.shape).contiguous()


def architecture(base: Path) -> tuple[str, bool]:
    """GGUF's name of the base's architecture, and whether q and k are interleaved there.

    Raises:
        InputError: one that is not converted here.
    """
    name = (json.loads((base / "config.json").read_text(encoding="utf-8")).get("architectures") or ["unknown"])[0]
    faults = serving.unsupported_base("llama.cpp", name)
    if faults:
        raise InputError(faults[0])
    return ARCHITECTURES[name]


def text_config(base: Path) -> dict[str, Any]:
    """The config of the language model in a base's folder."""
    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    return config.get("text_config") or config


def check_base(file: Path, base: Path) -> None:
    """Check that a GGUF holds a model of the base's architecture, size and tokenizer.

    Args:
        file: the GGUF that will be served.
        base: folder of the base that the adapter was trained on.

    Raises:
        InputError: no GGUF, or the first thing in which it differs.
    """
    import gguf

    from lora_select import models

    try:
        fields = gguf.GGUFReader(file).fields
    except (OSError, ValueError) as error:
        raise InputError(f"{file} is no GGUF file: {error}; name the base model's with --gguf") from error
    kind, config = architecture(base)[0], text_config(base)
    wanted = {
        "general.architecture": kind,
        f"{kind}.block_count": config["num_hidden_layers"],
        f"{kind}.embedding_length": config["hidden_size"],
    }
    for key, value in wanted.items():
        got = fields[key].contents() if key in fields else None
        if got != value:
            raise InputError(
                f"{file} is another model than the base {base}: {key} is {got}, the base has {value}; convert the base itself"
            )
    if "tokenizer.ggml.tokens" not in fields:
        raise InputError(
            f"{file} holds no tokenizer, so it cannot be told whether it is the base's; convert the base again"
        )
    theirs = fields["tokenizer.ggml.tokens"].contents()
    tokenizer: Any = models.load_tokenizer(str(base))
    ours = {index: token for token, index in tokenizer.get_vocab().items()}
    differ = [i for i in sorted(ours) if i >= len(theirs) or theirs[i] != ours[i]]
    if differ:
        i = differ[0]
        got = repr(theirs[i]) if i < len(theirs) else "nothing"
        raise InputError(
            f"{file} has another tokenizer than the base {base}: {len(differ)} of {len(ours)} tokens differ, the first is id {i}, "
            f"{got} where the base has {ours[i]!r}; convert the base itself"
        )


def _numbered(kind: str) -> Any:
    import gguf

    return next(number for number, name in gguf.MODEL_ARCH_NAMES.items() if name == kind)
