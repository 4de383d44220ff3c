"""Optimizer state by parameter name, whole: taken from and given to any ZeRO stage and any number of ranks.

ZeRO 1 to 3 keep the state of many parameters in one flat tensor, of which each rank holds a part. DeepSpeed's own
checkpoints keep those parts and so belong to one stage and one number of ranks. An adapter's state is small, so it is put
together by name and written once.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

SEPARATOR = "|"
GROUP = "group"
TENSOR = "tensor:"
FRESH = ("params", "lr", "initial_lr")
"""Of a group, what the plan decides anew in every step or build."""


def gather(engine: Any, stage: int) -> tuple[dict[str, Any], str]:
    """The optimizer's state as `{"<key>|<parameter>": tensor}`, on the CPU, and its groups as JSON.

    Called by every rank, the same on all. A tensor has its parameter's shape, or none (a step count; int64 and float64
    stand for Python's own numbers). Tensors that a group holds (AdaLoRA's importances) are named in the JSON.

    Raises:
        RuntimeError: at ZeRO 1 to 3, the optimizer keeps something that is neither.
    """
    names = {id(p): name for name, p in engine.module.named_parameters()}  # LoRA-FA keeps state of its frozen A too
    found: dict[str, Any] = {}
    groups = [
        {
            key: _pack(value, f"{GROUP}{SEPARATOR}{index}/{key}", found)
            for key, value in group.items()
            if key not in FRESH
        }
        for index, group in enumerate(engine.optimizer.param_groups)
    ]
    if stage == 0:
        for owner, values in engine.optimizer.state.items():
            name = owner if isinstance(owner, str) else names[id(owner)]  # PEFT's LoRA-FA keeps its state by layer
            for key, value in values.items():
                found[f"{key}{SEPARATOR}{name}"] = _tensor(value)
        return found, json.dumps(groups)
    if stage < 3:
        _link(engine)
    for flat, parameters in _partitions(engine, stage):
        for key, value in engine.optimizer.optimizer.state[flat].items():
            for parameter in parameters:
                whole = _gathered(parameter, key, value, flat)
                found[f"{key}{SEPARATOR}{names[id(parameter)]}"] = _tensor(whole)
    return found, json.dumps(groups)


def restore(engine: Any, stage: int, saved: Mapping[str, Any], groups: str) -> None:
    """Give an engine that has made no step the state of one that has; called by every rank."""
    parameters = {name: p for name, p in engine.module.named_parameters() if p.requires_grad}
    device = next(iter(parameters.values())).device
    for group, values in zip(engine.optimizer.param_groups, json.loads(groups), strict=True):
        group.update({key: _unpack(value, saved, device) for key, value in values.items()})
    by_name: dict[str, dict[str, Any]] = {}
    for place, tensor in saved.items():
        key, name = place.split(SEPARATOR, 1)
        if key != GROUP:
            by_name.setdefault(name, {})[key] = tensor
    if stage == 0:
        for name, values in by_name.items():
            state = {key: _value(value, device) for key, value in values.items()}
            engine.optimizer.state[parameters.get(name, name)] = state
        return
    names = {id(p): name for name, p in parameters.items()}
    for flat, inside in _partitions(engine, stage):
        values = {id(parameter): by_name[names[id(parameter)]] for parameter in inside}
        _restore_partition(engine, stage, flat, inside, values)


def _partitions(engine: Any, stage: int) -> Iterator[tuple[Any, list[Any]]]:
    """`(flat tensor that the optimizer sees, parameters in it)`."""
    zero = engine.optimizer
    if stage == 3:
        yield from zip(zero.fp32_partitioned_groups_flat, zero.fp16_groups, strict=True)
    else:
        yield from zip(zero.single_partition_of_fp32_groups, zero.bit16_groups, strict=True)


def _link(engine: Any) -> None:
    """Make the parts of the state known by parameter at ZeRO 1 and 2.

    DeepSpeed does so once, after the first group's first step, and so never for the other groups (LoRA+).
    """
    engine.optimizer._hp_optimizer_states_linked = False
    engine.optimizer._lazy_init_hp_params_optimizer_state()


def _gathered(parameter: Any, key: str, value: Any, flat: Any) -> Any:
    from deepspeed.utils import safe_get_full_optimizer_state

    if not hasattr(value, "shape") or value.ndim == 0:
        return value
    if value.shape != flat.shape:
        raise RuntimeError(
            f"optimizer state {key!r} of shape {tuple(value.shape)} cannot be kept at ZeRO 1 to 3; use 0"
        )
    return safe_get_full_optimizer_state(parameter, key)


def _restore_partition(
    engine: Any, stage: int, flat: Any, parameters: list[Any], values: dict[int, dict[str, Any]]
) -> None:
    import torch
    from deepspeed.utils import safe_set_full_optimizer_state, safe_set_local_optimizer_state

    first = values[id(parameters[0])]
    engine.optimizer.optimizer.state[flat] = {
        key: _value(value, flat.device) if value.ndim == 0 else torch.zeros_like(flat) for key, value in first.items()
    }
    if stage < 3:
        _link(engine)
    for parameter in parameters:
        for key, value in values[id(parameter)].items():
            if value.ndim == 0:
                continue
            if stage < 3:
                safe_set_full_optimizer_state(parameter, value.to(flat.device), key)
            else:
                safe_set_local_optimizer_state(parameter, _part(parameter, value).to(flat.device), key)


def _part(parameter: Any, value: Any) -> Any:
    """This rank's part of a tensor as ZeRO-3 cuts it: equal parts, the last one padded with zeros."""
    import torch
    import torch.distributed

    size = parameter.ds_tensor.numel()
    whole = torch.nn.functional.pad(value.flatten(), (0, size * torch.distributed.get_world_size() - value.numel()))
    return whole.narrow(0, size * torch.distributed.get_rank(), size)


def _pack(value: Any, place: str, tensors: dict[str, Any]) -> Any:
    """A nested value as JSON; its tensors go into `tensors` under their place."""
    if isinstance(value, Mapping):
        return {key: _pack(item, f"{place}/{key}", tensors) for key, item in value.items()}
    if hasattr(value, "detach"):
        tensors[place] = _tensor(value)
        return TENSOR + place
    return value


def _unpack(value: Any, tensors: Mapping[str, Any], device: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _unpack(item, tensors, device) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(TENSOR):
        return tensors[value.removeprefix(TENSOR)].to(device)
    return value


def _value(tensor: Any, device: Any) -> Any:
    """As the optimizer had it: Python's number, a count that stays on the CPU, or a tensor beside its parameter."""
    if tensor.ndim:
        return tensor.to(device)
    return tensor.clone() if tensor.dtype.itemsize < 8 else tensor.item()


def _tensor(value: Any) -> Any:
    import torch

    if isinstance(value, float):
        return torch.tensor(value, dtype=torch.float64)
    return torch.as_tensor(value).detach().cpu().clone().contiguous()
