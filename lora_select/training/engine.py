"""The model and optimizer of a rank, in DeepSpeed's hands."""

from typing import Any

from lora_select.data.tokens import TokenRow
from lora_select.records import TrainingPlan
from lora_select.training import checkpoints, job, model, optimizer, smoke
from lora_select.training.rank import Rank, limit_collectives

BUCKET_ELEMENTS = 2 * 10**7


def build(rank: Rank, step: int, rows: list[TokenRow] | None = None) -> Any:
    """The DeepSpeed engine of this rank's job, as it was after `step` steps (0: at its start).

    On `rows` it is first proven to fit. Parameters are loaded before DeepSpeed takes the model, so that it cuts its parts from the right values.
    """
    import deepspeed

    plan = rank.plan
    folder = rank.folder / job.CHECKPOINTS
    network = model.build(rank.job, rank.device)
    rank.beat("smoke")
    if rows:
        smoke.make_ready(network, rows, plan, rank.pad_id, rank.device)
    made = optimizer.make_optimizer(network, rank.job.spec, plan)
    if step:
        checkpoints.load_parameters(network, folder, step)
    engine, *_ = deepspeed.initialize(model=network, optimizer=made, config=deepspeed_config(plan))
    limit_collectives(rank.job)
    if step:
        checkpoints.load_optimizer(engine, plan.zero_stage, folder, step)
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
        "zero_optimization": {"stage": plan.zero_stage, "reduce_bucket_size": BUCKET_ELEMENTS},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }
