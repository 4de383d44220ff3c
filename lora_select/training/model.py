"""The model that is trained, and its way out: a PEFT folder that fits the pristine base."""

import json
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.records import AdapterSpec
from lora_select.training.job import TrainingJob

AS_TRAINED = "as trained"
CONVERTED = "2r conversion"


def build(job: TrainingJob, device: str) -> Any:
    """Base model and adapter on `device`, adapter parameters in fp32, the rest frozen.

    A start that takes B A out of the base keeps the base in fp32: in bf16 the residual would be rounded.
    """
    import peft

    changes_base = subtracts(job.initial_factors)
    dtype = "bfloat16" if job.plan.precision == "bf16" and not changes_base else "float32"
    base = models.load_model(job.base_path, dtype=dtype, device=device)
    if job.plan.gradient_checkpointing:
        base.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
        base.enable_input_require_grads()  # pyright: ignore[reportCallIssue]
    config_class = getattr(peft, job.spec.peft_class)
    config = config_class(base_model_name_or_path=job.base_source, **job.spec.peft_arguments)
    model = peft.get_peft_model(base, config)
    if job.initial_factors:
        start_from(model, job.initial_factors, job.spec.scale)
    return model.train()


def subtracts(initial_factors: str | None) -> bool:
    """Whether the start takes scale * B A out of the base weights."""
    if initial_factors is None:
        return False
    from safetensors import safe_open

    with safe_open(initial_factors, "pt") as file:
        return (file.metadata() or {}).get("subtract_from_base") == "true"


def start_from(model: Any, initial_factors: str, scale: float) -> None:
    """Load `<layer>.lora_A` and `<layer>.lora_B` over the adapter's own start.

    Raises:
        ValueError: a layer of the adapter is missing in the file, or a shape differs.
    """
    import torch
    from safetensors.torch import load_file

    factors = load_file(initial_factors)
    changes_base = subtracts(initial_factors)
    with torch.no_grad():
        for name, layer in lora_layers(model):
            a, b = factors[f"{name}.lora_A"], factors[f"{name}.lora_B"]
            layer.lora_A["default"].weight.copy_(a)
            layer.lora_B["default"].weight.copy_(b)
            if changes_base:
                weight = layer.get_base_layer().weight
                weight -= (scale * (b.float() @ a.float())).to(weight)


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    """`(name in the base model, PEFT layer)` of every adapted layer."""
    prefix = "base_model.model."
    return [(name.removeprefix(prefix), module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def save(model: Any, job: TrainingJob, folder: Path, parameters: dict[str, Any]) -> str:
    """Write the adapter as a standard PEFT folder and say how it was made portable.

    Args:
        model: the PEFT model.
        job: the run; its start decides whether a conversion is needed.
        folder: where the PEFT folder goes.
        parameters: full (unpartitioned) trainable parameters by name.
    """
    model.save_pretrained(str(folder), state_dict=parameters, safe_serialization=True)
    if job.initial_factors is None or not subtracts(job.initial_factors):
        return AS_TRAINED
    convert(folder, job.initial_factors, job.spec)
    return CONVERTED


def convert(folder: Path, initial_factors: str, spec: AdapterSpec) -> None:
    """Rewrite an adapter trained on base - s B0 A0 as one of rank 2r on the base: [A; A0] and [B, -B0], exactly.

    (W - s B0 A0) + s B A = W + s [B, -B0] [A; A0]. The scale alpha / r is kept by doubling both.
    """
    import torch
    from safetensors.torch import load_file, save_file

    file = folder / "adapter_model.safetensors"
    trained, start = load_file(file), load_file(initial_factors)
    joined = {}
    for name, tensor in trained.items():
        layer = name.removeprefix("base_model.model.").rsplit(".lora_", 1)[0]
        if name.endswith("lora_A.weight"):
            joined[name] = torch.cat([tensor, start[f"{layer}.lora_A"].to(tensor)], dim=0).contiguous()
        elif name.endswith("lora_B.weight"):
            joined[name] = torch.cat([tensor, -start[f"{layer}.lora_B"].to(tensor)], dim=1).contiguous()
        else:
            joined[name] = tensor
    save_file(joined, file, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    config |= {"r": 2 * spec.r, "lora_alpha": 2 * spec.r * spec.scale, "use_rslora": False, "init_lora_weights": True}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
