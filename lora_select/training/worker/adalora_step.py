"""AdaLoRA around a step of its optimizer: the regulariser before, the allocation of ranks after.

References:
    Zhang et al. (2023), *AdaLoRA*, equations 7 to 12.
"""

from typing import Any

from lora_select.serving.folder import PREFIX

REMEMBERED = ("ipt", "exp_avg_ipt", "exp_avg_unc")
"""What the allocator knows of each parameter; kept in the optimizer's state, so that a checkpoint holds it."""
KEPT = "kept"
"""In the state of E: the mask of the triplets that are left, once the ranks are fixed."""


def schedule(total_steps: int) -> dict[str, int]:
    """Full rank for the first tenth of the steps, the budget down to its target until 70 %, then fixed ranks."""
    return {"total_step": total_steps, "tinit": total_steps // 10, "tfinal": max(1, total_steps * 3 // 10)}


def attach(optimizer: Any, model: Any) -> Any:
    """Hook regulariser and allocation to `optimizer`, which steps on whole gradients of `model`."""

    def before(*_: Any) -> None:
        add_orthogonality(model)

    def after(optimizer: Any, *_: Any) -> None:
        """Before `zero_grad`: the allocation reads the gradients of the step."""
        if not model.base_model.rankallocator.ipt:
            _restore(model, optimizer)
        model.base_model.update_and_allocate(_steps_done(optimizer))
        _remember(model, optimizer)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer


def freeze_constants(model: Any) -> None:
    """PEFT's `ranknum`, a constant, comes out as trained where the base is in bf16."""
    for name, parameter in model.named_parameters():
        if ".ranknum." in name:
            parameter.requires_grad_(False)


def add_orthogonality(model: Any) -> None:
    """Add the gradient of the mean over factors of ||A A^T - I||_F + ||B^T B - I||_F, times PEFT's weight.

    PEFT adds it to `outputs.loss`, which a loss on our own labels never reads.
    """
    import torch

    named = [(name, p) for name, p in model.named_parameters() if "lora_A" in name or "lora_B" in name]
    factors = [p for _, p in named if p.requires_grad]
    weight = model.peft_config["default"].orth_reg_weight / len(factors)
    with torch.enable_grad():
        products = [p @ p.T if "lora_A" in name else p.T @ p for name, p in named]
        penalty = torch.stack([torch.linalg.norm(g - torch.eye(len(g), device=g.device)) for g in products]).sum()
    for factor, gradient in zip(factors, torch.autograd.grad(penalty, factors), strict=True):
        if factor.grad is not None:
            factor.grad += weight * gradient


def _steps_done(optimizer: Any) -> int:
    return max(int(state["step"]) for state in optimizer.state.values())


def _remember(model: Any, optimizer: Any) -> None:
    import torch

    pattern = model.peft_config["default"].rank_pattern or {}
    for name, parameter in model.named_parameters():
        known = optimizer.state.get(parameter)
        if known is None:
            continue
        for part in REMEMBERED:
            now = getattr(model.base_model.rankallocator, part)
            if _inner(name) in now:  # forgotten once the ranks are fixed
                known[part] = now[_inner(name)]
        if _inner(name) in pattern:
            known[KEPT] = torch.tensor(pattern[_inner(name)], device=parameter.device)[:, None]


def _restore(model: Any, optimizer: Any) -> None:
    """After a resume: into the allocator what the state holds; nothing at the first step."""
    pattern = {}
    for name, parameter in model.named_parameters():
        known = optimizer.state.get(parameter, {})
        for part in REMEMBERED:
            if part in known:
                getattr(model.base_model.rankallocator, part)[_inner(name)] = known[part]
        if KEPT in known:
            pattern[_inner(name)] = known[KEPT].flatten().bool().tolist()
    if pattern:
        model.peft_config["default"].rank_pattern = pattern


def _inner(name: str) -> str:
    """A parameter's name as the allocator sees it, in the model under PEFT's."""
    return name.removeprefix(PREFIX)
