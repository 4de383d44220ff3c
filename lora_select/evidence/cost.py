"""What a training costs before and after: pure functions from plan, adapter and prices to operations, hours, energy, money."""

import math
from dataclasses import dataclass
from typing import final

from lora_select.errors import InputError
from lora_select.records import Adapter, BaseModel, Cost, DatasetProfile, Energy, TrainingPlan

CPU_THREAD_WATTS = 8.0
"""A guess for one busy core of a server with its share of the board; a GPU's is asked from its driver or given."""
GPU_WATTS = 400.0
"""A guess for one busy data-centre GPU with its share of the host, where the driver says nothing."""


@final
@dataclass(frozen=True)
class Prices:
    """What hours and energy cost. `per_device_hour` is one GPU's, or one machine's for CPUs; None where it is not known.

    `watts` is the power of one device while training: a GPU, or one CPU thread; None takes the guesses of this module.

    Raises:
        InputError: a negative price or power, or one that is no number.
    """

    per_device_hour: float | None = None
    per_kwh: float | None = None
    currency: str = "EUR"
    watts: float | None = None

    def __post_init__(self) -> None:
        for name in ("per_device_hour", "per_kwh", "watts"):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and value >= 0):
                raise InputError(f"`cost.{name}` is {value}; write a number that is not negative, or null")


def training_flops(
    base: BaseModel, adapter_parameters: int, tokens: int, length: float, *, recompute: bool = False
) -> float:
    """Floating-point operations of training an adapter on `tokens` tokens.

    F = T (4 N + 6 P + 12 l d s / 2 + [2 N]), N the base's parameters (2 N forward, 2 N back through frozen weights, none for their
    gradients), P the adapter's (2 forward, 4 backward), l layers of width d, s the mean row length: causal attention costs 4 d s / 2
    a token and layer forward and twice that back. With gradient checkpointing the forward pass is run twice.

    Kaplan et al., Scaling Laws for Neural Language Models (2020), section 2.1 and table 1, without the weights' gradients.

    Args:
        base: the base model; an untied input embedding is counted too, which multiplies nothing: an upper bound there.
        adapter_parameters: trainable ones.
        tokens: trained on, padding excluded.
        length: mean tokens a row.
        recompute: gradient checkpointing.

    Returns:
        Operations, a multiplication and an addition counted apart.
    """
    attention = 12 * base.num_hidden_layers * base.hidden_size * length / 2
    per_token = 4 * base.num_parameters + 6 * adapter_parameters + attention
    if recompute:
        per_token += 2 * base.num_parameters + attention / 3
    return float(tokens) * per_token


def planned(
    plan: TrainingPlan, base: BaseModel, profile: DatasetProfile, adapter_parameters: int, prices: Prices = Prices()
) -> Cost:
    """What the plan expects, from its expected minutes."""
    share = plan.total_steps * plan.effective_batch_size / max(1, profile.train.rows)
    tokens = round(profile.train.tokens * share)
    flops = training_flops(
        base, adapter_parameters, tokens, profile.train.length.mean, recompute=plan.gradient_checkpointing
    )
    return _cost("planned", plan, flops, plan.minutes.expected / 60, None, prices, f"{tokens:,} tokens by the plan")


def measured(
    plan: TrainingPlan,
    adapter: Adapter,
    base: BaseModel,
    profile: DatasetProfile,
    energy: Energy | None = None,
    prices: Prices = Prices(),
) -> Cost:
    """What the training took; `energy` is what the machine's counters say, None where it has none: then it is estimated."""
    flops = training_flops(
        base,
        adapter.spec.num_parameters,
        adapter.tokens,
        profile.train.length.mean,
        recompute=plan.gradient_checkpointing,
    )
    return _cost(
        "measured",
        plan,
        flops,
        adapter.seconds / 3600,
        energy,
        prices,
        f"{adapter.tokens:,} tokens that were trained on",
    )


def estimated_energy(plan: TrainingPlan, hours: float, watts: float | None = None) -> Energy:
    """Hours times the power of what the plan uses; marked as an estimate, with the power in its basis."""
    if plan.device == "cpu":
        units, each, what = plan.num_processes * plan.threads_per_process, watts or CPU_THREAD_WATTS, "CPU thread"
    else:
        units, each, what = plan.num_processes, watts or GPU_WATTS, "GPU"
    origin = "as given" if watts else "a guess, set `cost.watts`"
    return Energy(
        hours * units * each / 1000, "estimated", f"{units} {what}{'s' * (units != 1)} of {each:g} W ({origin})"
    )


def words(cost: Cost) -> str:
    """One line for a person.

    >>> words(Cost("measured", 3.2e13, 0.5, 2, 1.0, Energy(0.08, "estimated", ""), 0.12, "EUR", ()))
    '3.2e+13 floating-point operations, 0.50 h, 0.08 kWh (estimated), 0.12 EUR'
    """
    parts = [
        f"{cost.flops:.2g} floating-point operations",
        f"{cost.hours:.2f} h",
        f"{cost.energy.kwh:.2g} kWh ({cost.energy.source})",
    ]
    return ", ".join(parts + ([f"{cost.money:.2f} {cost.currency}"] if cost.money is not None else []))


def _cost(
    when: str, plan: TrainingPlan, flops: float, hours: float, energy: Energy | None, prices: Prices, tokens: str
) -> Cost:
    devices = plan.nodes if plan.device == "cpu" else plan.num_processes
    used = energy or estimated_energy(plan, hours, prices.watts)
    parts = []
    if prices.per_device_hour is not None:
        parts.append(hours * devices * prices.per_device_hour)
    if prices.per_kwh is not None:
        parts.append(used.kwh * prices.per_kwh)
    unit = "machine" if plan.device == "cpu" else "GPU"
    basis = (
        f"operations: 4 a parameter of the base and 6 a parameter of the adapter for each of {tokens}, and causal attention",
        f"hours: {'expected by the plan' if when == 'planned' else 'wall clock of the training stage'}, {devices} {unit}"
        f"{'s' * (devices != 1)}",
        f"energy: {used.source}, {used.basis}",
        "the training alone: profile, spectral pass, race and evaluation are not in it",
    )
    return Cost(
        when, flops, hours, devices, hours * devices, used, sum(parts) if parts else None, prices.currency, basis
    )
