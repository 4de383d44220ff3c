"""What is done about a failure: a pure function from the failure, the plan and what was done before to a new plan.

Every remedy keeps the effective batch, the seed and so the rows of every step, and each can be used a bounded number of
times. What no remedy fits is the user's to mend, in one sentence.
"""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

from lora_select.errors import InputError, WorldError
from lora_select.records import Remedy, TrainingPlan
from lora_select.training import failures
from lora_select.training.failures import Failure
from lora_select.training.zero import EVERY

MAX_RESTARTS = 3
"""Restarts without a change of plan that one start of the training may make."""
RATE_FACTOR = 0.5


def propose(
    failure: Failure,
    plan: TrainingPlan,
    history: Sequence[Remedy],
    restarts: int,
    *,
    stages: Sequence[int] = EVERY,
) -> Remedy | None:
    """The remedy for a failure, or None when there is none (left).

    Args:
        failure: from `failures.diagnose`.
        plan: the plan that failed, remedies of earlier failures included.
        history: every remedy so far in this training folder.
        restarts: how many restarts without a change this start of the training has made.
        stages: the ZeRO stages that the adapter works at.
    """
    if failure.kind == failures.OUT_OF_MEMORY:
        return _less_memory(failure, plan, stages)
    if failure.kind == failures.DIVERGED:
        if any(remedy.failure == failures.DIVERGED for remedy in history):
            return None
        rate = plan.learning_rate * RATE_FACTOR
        return _remedy(
            failure, plan, f"go back to the last good checkpoint at learning rate {rate:g}", learning_rate=rate
        )
    if failure.kind == failures.DISK_FULL:
        if any(remedy.failure == failures.DISK_FULL for remedy in history):
            return None
        return _remedy(failure, plan, "keep only the newest good checkpoint and go on from it", keep_checkpoints=1)
    if failure.kind in (failures.RANK_LOST, failures.STUCK) and restarts < MAX_RESTARTS:
        return _remedy(failure, plan, f"restart {restarts + 1} of {MAX_RESTARTS} from the last good checkpoint")
    return None


def applied(plan: TrainingPlan, history: Iterable[Remedy]) -> TrainingPlan:
    """The plan with every remedy's changes.

    Raises:
        ValueError: the remedies are of another plan.
    """
    for remedy in history:
        plan = dataclasses.replace(plan, **remedy.after)
    batch = plan.num_processes * plan.micro_batch_size * plan.gradient_accumulation_steps
    if batch != plan.effective_batch_size:
        raise ValueError(f"remedies change the effective batch from {plan.effective_batch_size} to {batch}")
    return plan


def error(failure: Failure, plan: TrainingPlan, log: str) -> Exception:
    """What the user is told when no remedy is left: InputError when a setting can mend it."""
    again = "the same command resumes from the last checkpoint"
    ways = {
        failures.OUT_OF_MEMORY: "micro-batch, checkpointing and ZeRO stage are at their ends; lower `dataset.max_length` or "
        "take more or larger devices",
        failures.DIVERGED: f"half the learning rate did not help; lower `selection.learning_rate` (now {plan.learning_rate:g}) or look "
        "at the rows that the message names",
        failures.NO_EFFECT: "training on would change nothing; look at `selection.learning_rate` and the targets",
    }
    if failure.kind in ways:
        return InputError(f"training stopped, {failure.kind}: {failure.message}; {ways[failure.kind]}\n  log: {log}")
    if failure.kind == failures.DISK_FULL:
        again = "free some; the same command resumes from the last checkpoint"
    return WorldError(f"training did not finish, {failure.kind}: {failure.message}; {again}\n  log: {log}")


def _less_memory(failure: Failure, plan: TrainingPlan, stages: Sequence[int]) -> Remedy | None:
    share = plan.micro_batch_size * plan.gradient_accumulation_steps
    if plan.micro_batch_size > 1:
        micro = max(size for size in range(1, plan.micro_batch_size // 2 + 1) if share % size == 0)
        return _remedy(
            failure,
            plan,
            f"micro-batch {plan.micro_batch_size} -> {micro}, accumulation {plan.gradient_accumulation_steps} -> {share // micro}",
            micro_batch_size=micro,
            gradient_accumulation_steps=share // micro,
        )
    if not plan.gradient_checkpointing:
        return _remedy(failure, plan, "compute activations again in the backward pass", gradient_checkpointing=True)
    stage = next((stage for stage in stages if stage > plan.zero_stage), None)
    if stage is not None and plan.num_processes > 1:
        return _remedy(failure, plan, f"ZeRO-{plan.zero_stage} -> ZeRO-{stage}", zero_stage=stage)
    return None


def _remedy(failure: Failure, plan: TrainingPlan, action: str, **after: Any) -> Remedy:
    before = {name: getattr(plan, name) for name in after}
    return Remedy(failure.kind, failure.step, failure.message, action, before, after)
