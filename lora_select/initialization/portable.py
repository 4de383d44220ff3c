"""Exact conversion of an adapter whose start changed the base: rank 2r on the pristine base."""

import json
from pathlib import Path
from typing import Any

from lora_select.records import AdapterSpec
from lora_select.serving.folder import PREFIX

AS_TRAINED = "as trained"
CONVERTED = "2r conversion"


def subtracts(initial_factors: str | None) -> bool:
    """Whether the start takes scale * B A out of the base weights."""
    if initial_factors is None:
        return False
    from safetensors import safe_open

    with safe_open(initial_factors, "pt") as file:
        return (file.metadata() or {}).get("subtract_from_base") == "true"


def make_portable(folder: Path, initial_factors: str | None, spec: AdapterSpec) -> str:
    """Rewrite a PEFT folder so that it fits the pristine base; say how, for `Adapter.export`."""
    if initial_factors is not None and subtracts(initial_factors):
        convert(folder, initial_factors, spec)
        return CONVERTED
    _forget_start(folder)
    return AS_TRAINED


def convert(folder: Path, initial_factors: str, spec: AdapterSpec) -> None:
    """Rewrite an adapter trained on base - s B0 A0 as one of rank 2r on the base: [A; A0] and [B, -B0], exactly.

    (W - s B0 A0) + s B A = W + s [B, -B0] [A; A0]. With alpha = 2 r, so that alpha / r = 2r / 2r = 1 and every loader agrees;
    s goes into B.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    trained, start = load_file(file), load_file(initial_factors)
    joined = {}
    for name, tensor in trained.items():
        layer = name.removeprefix(PREFIX).rsplit(".lora_", 1)[0]
        if name.endswith("lora_A.weight"):
            joined[name] = torch.cat([tensor, start[f"{layer}.lora_A"].to(tensor)], dim=0).contiguous()
        elif name.endswith("lora_B.weight"):
            both = torch.cat([tensor, -start[f"{layer}.lora_B"].to(tensor)], dim=1)
            joined[name] = (spec.scale * both).contiguous()
        else:
            joined[name] = tensor
    save_file(joined, file, metadata={"format": "pt"})
    _change_config(folder, r=2 * spec.r, lora_alpha=2 * spec.r, use_rslora=False, init_lora_weights=True)


def _forget_start(folder: Path) -> None:
    """A LoRA start has served once trained; a loader that makes it again could fail, or change the base."""
    if "init_lora_weights" in _config(folder):
        _change_config(folder, init_lora_weights=True)


def _config(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))


def _change_config(folder: Path, **changes: Any) -> None:
    text = json.dumps(_config(folder) | changes, indent=2, sort_keys=True) + "\n"
    (folder / "adapter_config.json").write_text(text, encoding="utf-8")
