"""Which micro-batch, checkpointing and ZeRO stage: the fastest that fits, for a fixed effective batch."""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from lora_select.data.labels.tokens import TokenRow
from lora_select.errors import InputError
from lora_select.records import AdapterSpec, BaseModel, TrainingPlan
from lora_select.training.planning import memory
from lora_select.training.worker import batches
from lora_select.training.zero import refusal, to_try

MARGIN = 0.9
"""Share of the memory that the expected need may take."""
LARGEST = {"cpu": 8, "cuda": 32}
"""Rows of a micro-batch where none is asked for: beyond these the device is busy and memory only grows."""


def micro_batches(batch: int, ranks: int, device: str, asked: int | None) -> list[int]:
    """Sizes that may be used, largest first: ranks x micro x accumulation = batch.

    Raises:
        InputError: the batch cannot be shared out so.
    """
    if batch % ranks:
        raise InputError(
            f"`training.batch_size` {batch} is no multiple of the {ranks} ranks; use {batch - batch % ranks} or "
            f"{batch + ranks - batch % ranks}, or another `training.num_processes`"
        )
    share = batch // ranks
    if asked and share % asked:
        raise InputError(
            f"`training.micro_batch_size` {asked} does not divide the {share} rows of each rank "
            f"(`training.batch_size` {batch} over {ranks} ranks)"
        )
    if asked:
        return [asked]
    return [size for size in range(min(LARGEST[device], share), 0, -1) if share % size == 0]


def fitted(
    draft: TrainingPlan,
    base: BaseModel,
    spec: AdapterSpec,
    available: float,
    wanted: Mapping[str, Any],
    load: Sequence[TokenRow] | int,
) -> TrainingPlan:
    """The draft with the first setting that fits: smaller micro-batches before checkpointing, that before the next ZeRO stage.

    A smaller micro-batch costs little, checkpointing a third of the time, a stage traffic between the ranks at every step.

    Args:
        draft: the plan so far; its micro-batch, accumulation, checkpointing, stage and memory are replaced.
        base: the base model.
        spec: the adapter.
        available: GiB of one rank.
        wanted: the config's `training` section.
        load: the rows that are trained on, from which the heaviest micro-batch is known exactly; or the longest row's tokens.

    Raises:
        InputError: nothing fits, or not at the stage that was asked for; names the way out.
    """
    ranks, share = draft.num_processes, draft.effective_batch_size // draft.num_processes
    sizes = micro_batches(draft.effective_batch_size, ranks, draft.device, wanted["micro_batch_size"])
    stage, checkpointing = wanted["zero_stage"], wanted["gradient_checkpointing"]
    stages = to_try(spec, stage, wanted.get("quantize"))
    switches = [False, True] if checkpointing == "auto" else [bool(checkpointing)]
    tried = []
    for stage, switch, size in itertools.product(stages, switches, sizes):
        plan = dataclasses.replace(
            draft,
            zero_stage=stage,
            gradient_checkpointing=switch,
            micro_batch_size=size,
            gradient_accumulation_steps=share // size,
        )
        held = setting(plan, load, wanted.get("quantize"))
        need = memory.estimate(base, spec, dataclasses.replace(held, whole_logits=bool(wanted.get("whole_logits"))))
        if need.expected <= MARGIN * available:
            reason = (
                f"ZeRO-{stage}, {size} rows a micro-batch{', activations computed twice' if switch else ''}: {need.expected:.1f} "
                f"GiB a rank ({need.low:.1f} to {need.high:.1f}) of {available:.1f} GiB"
            )
            return dataclasses.replace(plan, memory_gib=need, reasons=(*plan.reasons, reason))
        tried.append((need, stage))
    least, stage = min(tried, key=lambda one: one[0].expected)
    barred = refusal(spec, 3, wanted.get("quantize"))
    raise InputError(
        f"the model needs about {least.expected:.1f} GiB a rank at ZeRO-{stage}, {available:.1f} are there (a tenth is kept free); "
        "lower `training.micro_batch_size` or `dataset.max_length`, use bf16, or take more GPUs"
        + (f"; ZeRO-3 is no way out: {barred}" if barred else "")
    )


def setting(plan: TrainingPlan, load: Sequence[TokenRow] | int, quantize: str | None = None) -> memory.Setting:
    """What the memory model needs to know of a plan and its heaviest micro-batch."""
    if isinstance(load, int):
        tokens = plan.micro_batch_size * load
        labels = tokens
    else:
        part = batches.heaviest(load, plan)
        tokens, labels = batches.held_tokens(part, plan.packing), sum(sum(row.label_mask) for row in part)
    return memory.Setting(
        tokens=tokens,
        labels=labels,
        precision=plan.precision,
        zero_stage=plan.zero_stage,
        ranks=plan.num_processes,
        gradient_checkpointing=plan.gradient_checkpointing,
        device="cuda" if plan.device == "cuda" else "cpu",
        quantize=quantize,
    )
