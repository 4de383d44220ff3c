"""The optimizer steps of a rank."""

import dataclasses
import json
import math
import os
import resource
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from lora_select.data.labels.tokens import TokenRow
from lora_select.records import StepMetrics, TrainingPlan
from lora_select.training import job
from lora_select.training.failures import DIVERGED, TrainingError
from lora_select.training.worker import batches, checkpoints, optimizer, rehearsal, sanity
from lora_select.training.worker.loss import training_loss
from lora_select.training.worker.process import Process, seed_micro_batch
from lora_select.training.worker.resume import metrics_until
from lora_select.training.worker.validate import Watch

NAMED_ROWS = 16


def train(rank: Process, rows: list[TokenRow], watch: Watch, first: int) -> tuple[float, int]:
    """Do the steps from `first` (0-based) on; returns the last loss and the steps that were done. Rank 0 writes a line of metrics a step.

    `watch` looks at the rows that are kept from training, and may say that it is enough.
    """
    plan = rank.plan
    loss = math.nan
    losses = [line["loss"] for line in metrics_until(rank.folder / job.METRICS, first)]
    start = None if first else sanity.Effect(checkpoints.whole_parameters(rank.engine, plan.zero_stage))
    if not first and watch.is_due(0):
        watch.look(0)
    with (rank.folder / job.METRICS).open("a", encoding="utf-8") as stream:
        for step in range(first, plan.total_steps):
            metrics, labels = _step(rank, rows, step)
            loss = metrics.loss
            _refuse_nonsense(rank, rows, metrics)
            done = step + 1
            if watch.is_due(done):
                metrics = dataclasses.replace(metrics, validation_loss=watch.look(done))
            if rank.is_first:
                stream.write(json.dumps(dataclasses.asdict(metrics) | {"label_tokens": labels}) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            losses.append(loss)
            sanity.refuse_divergence(losses, plan.learning_rate)
            if start and done == min(sanity.FIRST_STEPS, plan.total_steps):
                start.check(checkpoints.whole_parameters(rank.engine, plan.zero_stage), metrics.learning_rate)
            if metrics.validation_loss is not None and watch.is_over():
                return loss, done
            if done % plan.checkpoint_every == 0 and done < plan.total_steps:
                rank.beat("checkpoint")
                folder = rank.folder / job.CHECKPOINTS
                checkpoints.save(rank.engine, plan.zero_stage, folder, done, plan.keep_checkpoints)
    if first >= plan.total_steps:
        kept = metrics_until(rank.folder / job.METRICS, plan.total_steps)
        loss = kept[-1]["loss"]
    return loss, plan.total_steps


def _step(rank: Process, rows: list[TokenRow], step: int) -> tuple[StepMetrics, int]:
    """One optimizer step on the mean loss per label token of the whole effective batch."""
    plan, engine = rank.plan, rank.engine
    began = time.monotonic()
    numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
    chosen = [rows[number] for number in numbers]
    mine = batches.dealt(chosen, plan)[rank.rank]
    labels = sum(sum(row.label_mask) for row in chosen)
    rate = learning_rate(plan, step)
    optimizer.set_rate(engine.optimizer, rate)
    total, norm = torch.zeros((), dtype=torch.float64, device=rank.device), 0.0
    for index, part in enumerate(mine):
        rank.beat("step", step + 1)
        seed_micro_batch(plan.seed, step, index * rank.world + rank.rank)
        nll = training_loss(
            engine, rehearsal.batch_of(part or [batches.masked(chosen[0])], plan, rank.pad_id, rank.device)
        )
        # DeepSpeed averages over ranks and over micro-batches; the mean wanted is over label tokens.
        engine.backward(nll * (rank.world * plan.gradient_accumulation_steps / labels))
        total += nll.detach()
        if index == len(mine) - 1:
            norm = _gradient_norm(engine, plan)
        engine.step()
    torch.distributed.all_reduce(total)
    loss_sum = float(total)
    tokens = sum(len(row.input_ids) for row in chosen)
    rank.tokens += tokens
    rank.label_tokens += labels
    metrics = StepMetrics(
        step=step + 1,
        loss=loss_sum / labels,
        learning_rate=rate,
        grad_norm=norm if plan.zero_stage == 0 else float(engine.get_global_grad_norm() or 0.0),
        tokens=tokens,
        tokens_per_second=tokens / (time.monotonic() - began),
        memory_gib=peak_memory_gib(rank.device),
        timestamp_ms=int(time.time() * 1000),
    )
    return metrics, labels


def _refuse_nonsense(rank: Process, rows: list[TokenRow], metrics: StepMetrics) -> None:
    """Stop before a loss or gradient that is no number is written down or saved; names the rows of the step.

    Raises:
        TrainingError: the same on every rank.
    """
    if math.isfinite(metrics.loss) and math.isfinite(metrics.grad_norm):
        return
    plan = rank.plan
    numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, metrics.step - 1)
    names = ", ".join(rows[number].row_id for number in numbers[:NAMED_ROWS])
    raise TrainingError(
        DIVERGED,
        f"the loss is {metrics.loss} and the gradient's norm {metrics.grad_norm} at step {metrics.step}, learning rate "
        f"{metrics.learning_rate:g}; its rows: {names}{', ...' if len(numbers) > NAMED_ROWS else ''}",
    )


def _gradient_norm(engine: Any, plan: TrainingPlan) -> float:
    """The norm before clipping; DeepSpeed itself only knows it when ZeRO partitions the gradients."""
    if plan.zero_stage > 0:
        return 0.0
    gradients = [p.grad for p in engine.module.parameters() if p.requires_grad and p.grad is not None]
    return float(torch.nn.utils.get_total_norm(gradients))


def learning_rate(plan: TrainingPlan, step: int) -> float:
    """The rate of a 0-based step: linear warm-up from rate / warmup_steps, then cosine or linear to 0, or constant."""
    if step < plan.warmup_steps:
        return plan.learning_rate * (step + 1) / plan.warmup_steps
    share = (step - plan.warmup_steps) / max(1, plan.total_steps - plan.warmup_steps)
    factor = {"cosine": 0.5 * (1 + math.cos(math.pi * share)), "linear": 1 - share, "constant": 1.0}
    return plan.learning_rate * factor[plan.lr_schedule]


def peak_memory_gib(device: str) -> float:
    """Peak memory of this process: allocated on the GPU, resident on a CPU, in GiB.

    `ru_maxrss` would also hold what the process that started this one had at most; it stands in where the kernel tells nothing else.
    """
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**30
    status = Path("/proc/self/status")
    lines = status.read_text(encoding="utf-8").splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
