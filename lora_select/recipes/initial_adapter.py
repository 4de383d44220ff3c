"""An adapter at its start as a PEFT folder, which `PeftModel.from_pretrained(base, folder, is_trainable=True)` takes up."""

import dataclasses
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.initialization import write_initialization
from lora_select.initialization.portable import make_portable
from lora_select.recipes.expressible import BY_NAME, PEFT_MAKES, start_of
from lora_select.records import AdapterSpec, BaseModel, TrainingPlan

FACTORS = "initial_factors.safetensors"


def named_init(spec: AdapterSpec) -> AdapterSpec:
    """The spec with PEFT's own init of that name, for starts that PEFT makes itself."""
    if spec.init not in PEFT_MAKES:
        return spec
    arguments = dict(spec.peft_arguments) | {"init_lora_weights": spec.init}
    return dataclasses.replace(spec, init="default", peft_arguments=arguments)


def write_start(
    spec: AdapterSpec,
    plan: TrainingPlan,
    base: BaseModel,
    source: str,
    spectra: Path,
    quantize: str | None,
    folder: Path,
) -> None:
    """Write `adapter_config.json` and `adapter_model.safetensors`.

    Starts whose factors PEFT lacks (EVA, LoRA-One, LoftQ) are made from the spectral record and written as tensors. Starts that
    also change or freeze something (PiSSA, OLoRA, MiCA) keep their name in the config: PEFT makes them again from the pristine
    weights at loading, and the folder's tensors are the same ones.

    Args:
        spec: the adapter.
        plan: seed, and steps for adapters with a schedule.
        base: its weights are loaded in float32, or as `quantize` says.
        source: what the config names as the base.
        spectra: `spectra.safetensors`.
        quantize: how the base is stored in training; LoftQ's factors and DoRA's norms depend on it.
        folder: a new folder.
    """
    import torch

    from lora_select.training.worker.model import adapt

    folder.mkdir(parents=True, exist_ok=True)
    told = named_init(spec)
    factors = write_initialization(told, Path(base.path), spectra, folder / FACTORS, quantize)
    torch.manual_seed(plan.seed)
    model = adapt(
        models.load_model(base.path, quantize=quantize), told, plan, source, str(factors) if factors else None
    )
    model.save_pretrained(str(folder), state_dict=_state(model), safe_serialization=True)
    if start_of(spec) != BY_NAME:
        make_portable(folder, str(factors) if factors else None, spec)
    (folder / FACTORS).unlink(missing_ok=True)
    (folder / "README.md").unlink(missing_ok=True)  # an empty model card for an adapter that is not trained yet


def _state(model: Any) -> dict[str, Any]:
    return {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
