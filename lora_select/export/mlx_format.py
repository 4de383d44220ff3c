"""A plain LoRA as MLX-LM reads it: `adapters.safetensors` with factors transposed, and a config with an explicit scale."""

import json
import re
from pathlib import Path

from lora_select.export.gguf_format import text_config
from lora_select.records import write_text
from lora_select.serving.folder import CONFIG, FACTOR, PREFIX, WEIGHTS

IN_BLOCK = re.compile(r"(?:.+\.)?layers\.\d+\.(?P<name>.+)")
FILE = "adapters.safetensors"
ROPE_THETA = {"llama": 1e4, "mistral": 1e4, "smollm3": 1e4, "qwen2": 1e6, "gemma": 1e4}
"""Model types of which MLX-LM 0.32.2 reads `rope_theta` at the config's top alone, and what it takes where nothing stands there."""


def write_mlx(lora: Path, base: Path, out: Path) -> Path:
    """Write the folder that `mlx_lm` takes as `--adapter-path`.

    MLX-LM computes x W^T + scale (x lora_a) lora_b with lora_a (in, r) and lora_b (r, out); `keys` are names inside a block, or whole
    names outside of one. A layer that is named there and has no tensors keeps lora_b = 0 and so does nothing.

    Args:
        lora: a PEFT folder in the safe form, alpha = r.
        base: the base model's folder.
        out: a folder.
    """
    from safetensors.torch import load_file, save_file

    config = json.loads((lora / CONFIG).read_text(encoding="utf-8"))
    tensors, keys = {}, set[str]()
    for name, tensor in load_file(lora / WEIGHTS).items():
        match = FACTOR.fullmatch(name)
        assert match is not None
        layer = match["layer"].removeprefix(PREFIX)
        inside = IN_BLOCK.fullmatch(layer)
        keys.add(inside["name"] if inside else layer)
        tensors[f"{layer}.lora_{match['side'].lower()}"] = tensor.T.contiguous()
    save_file(tensors, out / FILE, metadata={"format": "mlx"})
    scale = config["lora_alpha"] / config["r"]
    told = {
        "fine_tune_type": "lora",
        "num_layers": int(text_config(base)["num_hidden_layers"]),
        "lora_parameters": {"rank": config["r"], "scale": scale, "dropout": 0.0, "keys": sorted(keys)},
        "model": config["base_model_name_or_path"],
    }
    write_text(out / CONFIG, json.dumps(told, indent=2, sort_keys=True) + "\n")
    return out / FILE


def rope_unread(base: Path) -> tuple[str, ...]:
    """What MLX-LM would not read of the base's config, in a sentence; empty where it reads all.

    transformers 5 writes the rotary embedding's base under `rope_parameters`. MLX-LM takes its own default for models of which it does not
    look there, and they come out as another function without a word.
    """
    config = text_config(base)
    theta, kind = (config.get("rope_parameters") or {}).get("rope_theta"), config.get("model_type", "")
    if theta is None or "rope_theta" in config or theta == ROPE_THETA.get(kind, theta):
        return ()
    return (
        f"the base's config.json names rope_theta {theta:g} under `rope_parameters` alone, which MLX-LM 0.32.2 does not read; write "
        f'"rope_theta": {theta:g} at its top too, or serve the base as it was published',
    )
