"""The optimizer of an adapter, and the rate of its groups: plain AdamW, or what the variant's published form asks for."""

from typing import Any

from lora_select.errors import InputError
from lora_select.records import AdapterSpec, TrainingPlan

RATIO = "rate_ratio"
"""Key of a parameter group: its rate over the schedule's."""


def make_optimizer(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:
    """The optimizer that `spec.optimizer` names, over the trained parameters of `model`.

    Args:
        model: the PEFT model.
        spec: the adapter; `spec.optimizer` is empty for AdamW.
        plan: rate and weight decay.

    Raises:
        InputError: an unknown optimizer.
    """
    import torch

    name = spec.optimizer.get("name", "adamw")
    if name != "adamw":
        raise InputError(f"optimizer {name!r} of variant {spec.variant} is unknown; known: adamw")
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=plan.weight_decay)


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the schedule's rate in every group, times the group's own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)
