"""The model and optimizer of a rank, in DeepSpeed's hands."""

from typing import Any

from lora_select.data.labels.tokens import TokenRow
from lora_select.records import TrainingPlan
from lora_select.training import job
from lora_select.training.worker import checkpoints, model, optimizer, rehearsal
from lora_select.training.worker.process import Process, limit_collectives
from lora_select.training.zero import LIVE_PARAMETERS

BUCKET_ELEMENTS = 2 * 10**7
GATHERING = {
    "stage3_max_live_parameters": LIVE_PARAMETERS,
    "stage3_max_reuse_distance": 0,
    "stage3_prefetch_bucket_size": BUCKET_ELEMENTS,
    "stage3_allgather_sequential": True,
}
"""ZeRO-3 is taken where memory does not suffice. DeepSpeed's own limits, 1e9 parameters gathered and kept for the backward pass, hold a
small model whole, twice while a bucket is copied apart; and for each module it walks over all modules that come within the reuse distance
(34 processor seconds in the second step of SmolLM2)."""


def build(rank: Process, step: int, rows: list[TokenRow] | None = None) -> Any:
    """The DeepSpeed engine of this rank's job, as it was after `step` steps (0: at its start).

    On `rows` it is first proven to fit. Parameters are loaded before DeepSpeed takes the model, so that it cuts its parts from the right values.
    """
    plan = rank.plan
    folder = rank.folder / job.CHECKPOINTS
    network = model.build(rank.job, rank.device)
    rank.beat("smoke")
    if rows:
        rehearsal.make_ready(network, rows, plan, rank.pad_id, rank.device)
    made = optimizer.make_optimizer(network, rank.job.spec, plan)
    if step:
        checkpoints.load_parameters(network, folder, step)
    engine = hand_over(rank, network, made, plan)
    if step:
        checkpoints.load_optimizer(engine, plan.zero_stage, folder, step)
    return engine


def hand_over(rank: Process, network: Any, made: Any, plan: TrainingPlan) -> Any:
    """The engine around a model that is ready, and its optimizer."""
    import deepspeed

    engine, *_ = deepspeed.initialize(model=network, optimizer=made, config=deepspeed_config(plan))
    limit_collectives(rank.job)
    return engine


def deepspeed_config(plan: TrainingPlan) -> dict[str, Any]:
    """The DeepSpeed configuration of a plan.

    Adapter parameters, gradients and optimizer state are fp32 at every stage and the frozen base has the plan's
    precision, so DeepSpeed's own mixed precision stays off: with it, ZeRO 1-3 would keep fp32 master weights and ZeRO 0
    would not, and stages would not compare.
    """
    return {
        "train_micro_batch_size_per_gpu": plan.micro_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "train_batch_size": plan.micro_batch_size * plan.gradient_accumulation_steps * plan.num_processes,
        "gradient_clipping": plan.max_grad_norm,
        # DeepSpeed's own bucket is 5e8 elements, 2 GB that an adapter's gradient never fills
        "zero_optimization": {
            "stage": plan.zero_stage,
            "reduce_bucket_size": BUCKET_ELEMENTS,
            **(GATHERING if plan.zero_stage == 3 else {}),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
