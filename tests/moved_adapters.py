"""A PEFT model of any kind whose trained parameters are moved away from their start, and what a model answers on fixed ids."""

import torch

from lora_select import models
from lora_select.variants import named

MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(4, 24)[None]


def moved(base, name="lora", r=4, **changes):
    """PEFT's model of the variant on the base's folder; `changes` are arguments of its config."""
    import peft

    variant = named(name, r)
    arguments = variant.peft_arguments() | {"target_modules": MODULES, "task_type": "CAUSAL_LM"} | changes
    config = getattr(peft, variant.peft_class)(base_model_name_or_path=str(base), **arguments)
    torch.manual_seed(0)
    model = peft.get_peft_model(models.load_model(str(base)), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn_like(parameter)
    return model.eval()


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits
