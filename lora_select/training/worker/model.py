"""The model that is trained, and its way out: a PEFT folder that fits the pristine base."""

from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.initialization.portable import make_portable, subtracts
from lora_select.records import AdapterSpec, TrainingPlan
from lora_select.serving.folder import PREFIX
from lora_select.training.job import TrainingJob
from lora_select.training.worker import optimizer


def build(job: TrainingJob, device: str) -> Any:
    """Base model and adapter on `device`, adapter parameters in fp32, the rest frozen."""
    base = load_base(job.base_path, job.plan, device, job.quantized_base, job.initial_factors)
    if job.plan.gradient_checkpointing:
        base.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue]
        base.enable_input_require_grads()  # pyright: ignore[reportCallIssue]
    return adapt(base, job.spec, job.plan, job.base_source, job.initial_factors).train()


def load_base(path: str, plan: TrainingPlan, device: str, quantize: str | None, initial_factors: str | None) -> Any:
    """The base in the plan's precision. A start that takes B A out of it keeps it in fp32: bf16 would round the residual."""
    dtype = "bfloat16" if plan.precision == "bf16" and not subtracts(initial_factors) else "float32"
    return models.load_model(path, dtype=dtype, device=device, quantize=quantize)


def adapt(base: Any, spec: AdapterSpec, plan: TrainingPlan, base_source: str, initial_factors: str | None) -> Any:
    """The adapter on a loaded base, at its start."""
    import peft

    config_class = getattr(peft, spec.peft_class)
    config = config_class(base_model_name_or_path=base_source, **optimizer.scheduled(spec.peft_arguments, plan))
    model = peft.get_peft_model(base, config)
    if initial_factors:
        start_from(model, initial_factors, spec.scale)
    return model


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
                base = layer.get_base_layer()
                taken = (scale * (b.float() @ a.float())).to(base.weight)
                base.weight -= taken.T if type(base).__name__ == "Conv1D" else taken  # GPT-2 stores (n, m)


def lora_layers(model: Any) -> list[tuple[str, Any]]:
    """`(name in the base model, PEFT layer)` of every adapted layer."""
    return [(name.removeprefix(PREFIX), module) for name, module in model.named_modules() if hasattr(module, "lora_A")]


def frozen_parts(model: Any, zero_stage: int) -> dict[str, Any]:
    """What the adapter needs and training leaves alone (MiCA's B, TinyLoRA's factors), whole; called by every rank."""
    import contextlib

    import deepspeed

    named = [(name, p) for name, p in model.named_parameters() if not p.requires_grad and ".default" in name]
    split = zero_stage == 3
    gathered = deepspeed.zero.GatheredParameters([p for _, p in named]) if split else contextlib.nullcontext()
    with gathered:
        return {name: p.detach().cpu().clone() for name, p in named}


def save(model: Any, job: TrainingJob, folder: Path, parameters: dict[str, Any]) -> str:
    """Write the adapter as a standard PEFT folder that fits the pristine base, and say how it was made so.

    Args:
        model: the PEFT model.
        job: the run; its start decides whether a conversion is needed.
        folder: where the PEFT folder goes.
        parameters: full (unpartitioned) parameters of the adapter by name, trained and frozen.
    """
    state = model.state_dict() | parameters  # buffers too: VeRA's shared factors; PEFT picks what is the adapter's
    model.save_pretrained(str(folder), state_dict=state, safe_serialization=True)
    return make_portable(folder, job.initial_factors, job.spec)
