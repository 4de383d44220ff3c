"""One rank of the trial at ZeRO-3: `python -m lora_select.training.planning.measure_ranks job.json` under torchrun, started by `measure.py`.

The model is split as it will be, and every rank runs the heaviest micro-batch, then a few ordinary ones, each with a step at a rate of zero:
the optimizer's state is there, and nothing is learnt.
"""

import dataclasses
import sys
import time
from pathlib import Path

import torch

from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import TrainingPlan
from lora_select.training import job
from lora_select.training.heartbeat import Heartbeat
from lora_select.training.planning import measure
from lora_select.training.planning.measure import Measured
from lora_select.training.worker import batches, deepspeed_engine, loss, main, model, optimizer, packing, rehearsal
from lora_select.training.worker.loop import peak_memory_gib
from lora_select.training.worker.process import Process, join, seed_start

HEAVY_PASSES = 3
"""DeepSpeed notes the order of the modules in the first passes and gathers ahead of use from then on, which takes memory and time."""


def work(job_file: Path, heart: Heartbeat) -> None:
    """Build the ranks' engine on the model and run it; rank 0 writes what was measured."""
    heart("joining")
    rank = join(job.read_job(job_file), job_file.parent, heart)
    heart("loading")
    trained, kept = batches.rows_of(rank.job)
    rows = [*trained, *kept]
    rank.pad_id = models.pad_id(models.load_tokenizer(rank.job.base_path))
    seed_start(rank.plan.seed)
    network = model.build(rank.job, rank.device)
    refusal = packing.refusal(network, rehearsal.vocabulary(network)) if rank.plan.packing else None
    plan = dataclasses.replace(rank.plan, packing=rank.plan.packing and refusal is None)
    loss.enable(network)
    heart("smoke")
    stepping = _stepping(plan)
    made = optimizer.make_optimizer(network, rank.job.spec, stepping)
    rank.engine = deepspeed_engine.hand_over(rank, network, made, stepping)
    optimizer.set_rate(rank.engine.optimizer, 0.0)
    heaviest = batches.heaviest(rows, plan)
    for _ in range(HEAVY_PASSES):
        _pass(rank, heaviest, plan)
    tokens, seconds, processor = 0, 0.0, 0.0
    for parts in _ordinary(rows, plan):
        began, spent = time.monotonic(), time.process_time()
        _pass(rank, parts[rank.rank] or [batches.masked(heaviest[0])], plan)
        measure.wait(rank.device)
        seconds += _largest(time.monotonic() - began, rank.device)
        processor += _largest(time.process_time() - spent, rank.device)
        tokens += round(sum(len(row.input_ids) for part in parts for row in part) / rank.world)
        if seconds > measure.TIMED_SECONDS:  # the same on all ranks
            break
    peak = _largest(peak_memory_gib(rank.device), rank.device)
    held = batches.held_tokens(heaviest, plan.packing)
    if rank.is_first:
        found = Measured(refusal, tokens, seconds, peak, held, processor, rank.world)
        measure.write_answer(rank.folder, found)


def _stepping(plan: TrainingPlan) -> TrainingPlan:
    """The plan with a step after every micro-batch."""
    batch = plan.micro_batch_size * plan.num_processes
    return dataclasses.replace(plan, gradient_accumulation_steps=1, effective_batch_size=batch)


def _pass(rank: Process, part: list[TokenRow], plan: TrainingPlan) -> None:
    """Forward, backward and step on one micro-batch."""
    rank.beat("smoke")
    nll = loss.training_loss(rank.engine, rehearsal.batch_of(part, plan, rank.pad_id, rank.device))
    rank.engine.backward(nll / max(1, sum(sum(row.label_mask) for row in part)))
    rank.engine.step()


def _ordinary(rows: list[TokenRow], plan: TrainingPlan) -> list[list[list[TokenRow]]]:
    """The first micro-batches of the training, those that run together side by side."""
    together = (list(parts) for step in measure.first_steps(rows, plan) for parts in zip(*step, strict=True))
    return list(together)[: measure.TIMED_BATCHES]


def _largest(value: float, device: str) -> float:
    """The largest of what the ranks have."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared, op=torch.distributed.ReduceOp.MAX)
    return float(shared)


if __name__ == "__main__":
    main.as_rank(work, Path(sys.argv[1]))
