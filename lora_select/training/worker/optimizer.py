"""The optimizer of an adapter, and the rate of its groups: plain AdamW, or what the variant's published form asks for."""

from collections.abc import Callable, Mapping
from typing import Any

from lora_select.errors import InputError
from lora_select.records import AdapterSpec, TrainingPlan
from lora_select.training.worker import adalora_step
from lora_select.training.zero import UNSPLIT_ONLY

RATIO = "rate_ratio"
"""Key of a parameter group: its rate over the schedule's."""


def make_optimizer(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:
    """The optimizer that `spec.optimizer` names, over the trained parameters of `model`.

    Args:
        model: the PEFT model; LoRA-FA freezes its A.
        spec: the adapter; `spec.optimizer` is empty for AdamW.
        plan: rate and weight decay.

    Raises:
        InputError: an unknown optimizer, or one that does not work at the plan's ZeRO stage.
    """
    name = spec.optimizer.get("name", "adamw")
    if name not in MAKERS:
        raise InputError(f"optimizer {name!r} of variant {spec.variant} is unknown; known: {', '.join(MAKERS)}")
    if name in UNSPLIT_ONLY and plan.zero_stage > 0:
        raise InputError(
            f"optimizer {name!r} of variant {spec.variant} works at ZeRO stage 0 only, and the plan has stage "
            f"{plan.zero_stage}; set `training.zero_stage` 0"
        )
    return MAKERS[name](model, spec, plan)


def set_rate(optimizer: Any, rate: float) -> None:
    """Set the schedule's rate in every group, times the group's own ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get(RATIO, 1.0)


def scheduled(arguments: Mapping[str, Any], plan: TrainingPlan) -> dict[str, Any]:
    """`peft_arguments` with the plan's steps in place of the placeholders, for adapters with a schedule (AdaLoRA)."""
    if "total_step" not in arguments:
        return dict(arguments)
    return {**arguments, **adalora_step.schedule(plan.total_steps)}


def _adamw(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:  # noqa: ARG001
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=plan.weight_decay)


def _loraplus(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:
    """Empty groups are dropped: ZeRO cannot flatten nothing."""
    import torch
    from peft.optimizers import create_loraplus_optimizer

    optimizer = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=plan.learning_rate,
        loraplus_lr_ratio=spec.optimizer["lora_b_ratio"],
        loraplus_weight_decay=plan.weight_decay,
    )
    optimizer.param_groups = [group for group in optimizer.param_groups if group["params"]]
    for group in optimizer.param_groups:
        group[RATIO] = group["lr"] / plan.learning_rate
    return optimizer


def _lorafa(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:
    from peft.optimizers import create_lorafa_optimizer

    return create_lorafa_optimizer(
        model, r=spec.r, lora_alpha=spec.lora_alpha, lr=plan.learning_rate, weight_decay=plan.weight_decay
    )


def _riemannian(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:
    import torch
    from peft.optimizers import create_riemannian_optimizer

    return create_riemannian_optimizer(
        model,
        torch.optim.AdamW,
        lr=plan.learning_rate,
        reg=spec.optimizer["damping"],
        weight_decay=plan.weight_decay,
    )


def _adalora(model: Any, spec: AdapterSpec, plan: TrainingPlan) -> Any:
    adalora_step.freeze_constants(model)
    return adalora_step.attach(_adamw(model, spec, plan), model)


MAKERS: dict[str, Callable[[Any, AdapterSpec, TrainingPlan], Any]] = {
    "adamw": _adamw,
    "lora+": _loraplus,
    "lora-fa": _lorafa,
    "riemannian": _riemannian,
    "adalora": _adalora,
}
