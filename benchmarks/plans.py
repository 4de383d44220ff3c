"""The training that the experiments share: one process, fp32, cosine after a warm-up of a tenth, no checkpoint on the way."""

from lora_select.records import Range, TrainingPlan

WARMUP = 0.1
"""Share of the steps."""


def alone(
    *, rate: float, seed: int, steps: int, epochs: float, batch: int, micro: int, packing: bool = False
) -> TrainingPlan:
    """The plan of so many steps at this peak learning rate."""
    nothing = Range(0, 0, 0)
    return TrainingPlan(
        device="cpu",
        num_processes=1,
        zero_stage=0,
        precision="fp32",
        micro_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        effective_batch_size=batch,
        epochs=epochs,
        total_steps=steps,
        warmup_steps=max(1, round(WARMUP * steps)),
        learning_rate=rate,
        lr_schedule="cosine",
        weight_decay=0.0,
        max_grad_norm=1.0,
        checkpoint_every=10**6,
        keep_checkpoints=1,
        gradient_checkpointing=False,
        seed=seed,
        threads_per_process=1,
        memory_gib=nothing,
        minutes=nothing,
        disk_gib=0.0,
        reasons=(),
        packing=packing,
    )
