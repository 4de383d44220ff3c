"""One rank: `python -m lora_select.training.worker job.json` under torchrun. CPU ranks over gloo, GPU ranks over NCCL."""

import dataclasses
import faulthandler
import json
import math
import os
import random
import resource
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from lora_select import models, records
from lora_select.data.tokens import TokenRow, collate, label_loss, read_rows
from lora_select.records import Adapter, StepMetrics, TrainingPlan, file_ref
from lora_select.training import batches, checkpoints, job, model, watch
from lora_select.training.job import TrainingJob

SUPERVISOR = "LORA_SELECT_SUPERVISOR"
PROBE_ROWS = 4
PROBE_POSITIONS = 12


@final
@dataclass
class Rank:
    """This process among the others, and what it trains."""

    job: TrainingJob
    folder: Path
    rank: int
    world: int
    device: str
    engine: Any = None
    pad_id: int = 0
    label_tokens: int = 0
    tokens: int = 0
    resumed: list[int] = field(default_factory=list)

    @property
    def plan(self) -> TrainingPlan:
        """The plan."""
        return self.job.plan

    @property
    def is_first(self) -> bool:
        """Whether this rank writes files."""
        return self.rank == 0


def main(job_file: Path) -> None:
    """Train as the job says; `result.json` is written last, by rank 0, and only then is the run a success."""
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    if SUPERVISOR in os.environ:
        pid, created = os.environ[SUPERVISOR].split(":")
        watch.die_with((int(pid), float(created)))
    started = time.monotonic()
    rank = _join(job.read_job(job_file), job_file.parent)
    rows = read_rows(Path(rank.job.train_tokens))
    rank.pad_id = models.pad_id(models.load_tokenizer(rank.job.base_path))
    _seed(rank.plan.seed)
    rank.engine = _engine(rank)
    first = _resume(rank)
    loss = _train(rank, rows, first)
    _finish(rank, loss, time.monotonic() - started)


def _join(told: TrainingJob, folder: Path) -> Rank:
    import torch

    on_gpu = told.plan.device == "cuda"
    if not on_gpu:
        os.environ["DS_ACCELERATOR"] = "cpu"
        torch.set_num_threads(told.plan.threads_per_process)
    import deepspeed

    if not on_gpu:
        # DeepSpeed would compile a shared-memory reduction at first use (minutes, and a killed build leaves a lock on
        # which later runs hang). Gloo reduces a LoRA gradient in milliseconds.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local = int(os.environ["LOCAL_RANK"])
    if on_gpu:
        torch.cuda.set_device(local)
    deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo", verbose=False)
    device = f"cuda:{local}" if on_gpu else "cpu"
    return Rank(told, folder, int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), device)


def _seed(seed: int) -> None:
    import torch

    random.seed(seed)
    torch.manual_seed(seed)  # the same on all ranks: they must build the same adapter


def _engine(rank: Rank) -> Any:
    import deepspeed
    import torch

    plan = rank.plan
    network = model.build(rank.job, rank.device)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=plan.learning_rate, weight_decay=plan.weight_decay)
    engine, *_ = deepspeed.initialize(model=network, optimizer=optimizer, config=deepspeed_config(plan))
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
        "zero_optimization": {"stage": plan.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,
        "wall_clock_breakdown": False,
    }


def _resume(rank: Rank) -> int:
    """Take up the newest whole checkpoint; returns the number of finished steps. Metrics after it are cut off."""
    folder = rank.folder / job.CHECKPOINTS
    step, faults = checkpoints.newest(folder, rank.world)
    if rank.is_first:
        for fault in faults:
            print(fault, flush=True)
    if step:
        checkpoints.load(rank.engine, folder, step)
    kept = _metrics_until(rank.folder / job.METRICS, step)
    rank.tokens = sum(line["tokens"] for line in kept)
    rank.label_tokens = sum(line.get("label_tokens", 0) for line in kept)
    notes = rank.folder / "resumed.json"
    rank.resumed = json.loads(notes.read_text()) if notes.is_file() else []
    if step:
        rank.resumed.append(step)
    if rank.is_first:
        records.write_text(notes, json.dumps(rank.resumed))
        records.write_text(rank.folder / job.METRICS, "".join(json.dumps(line) + "\n" for line in kept))
        print(f"rank 0 of {rank.world}: begins after step {step}", flush=True)
    return step


def _metrics_until(path: Path, step: int) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            continue  # a kill tore the last line; its step is done again
        if values["step"] <= step:
            kept.append(values)
    return kept


def _train(rank: Rank, rows: list[TokenRow], first: int) -> float:
    plan = rank.plan
    loss = math.nan
    with (rank.folder / job.METRICS).open("a", encoding="utf-8") as stream:
        for step in range(first, plan.total_steps):
            metrics, labels = _step(rank, rows, step)
            loss = metrics.loss
            if rank.is_first:
                stream.write(json.dumps(dataclasses.asdict(metrics) | {"label_tokens": labels}) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            if not math.isfinite(loss):
                raise RuntimeError(
                    f"the loss is {loss} at step {step + 1}: training diverged; lower `selection.learning_rate` "
                    f"(now {plan.learning_rate:g})"
                )
            done = step + 1
            if done % plan.checkpoint_every == 0 and done < plan.total_steps:
                checkpoints.save(rank.engine, rank.folder / job.CHECKPOINTS, done, plan.keep_checkpoints, rank.world)
    if first >= plan.total_steps:
        kept = _metrics_until(rank.folder / job.METRICS, plan.total_steps)
        loss = kept[-1]["loss"]
    return loss


def _step(rank: Rank, rows: list[TokenRow], step: int) -> tuple[StepMetrics, int]:
    """One optimizer step on the mean loss per label token of the whole effective batch."""
    plan, engine = rank.plan, rank.engine
    began = time.monotonic()
    numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
    chosen = [rows[number] for number in numbers]
    mine = batches.micro_batches(chosen, rank.world, plan.gradient_accumulation_steps)[rank.rank]
    labels = sum(sum(row.label_mask) for row in chosen)
    rate = learning_rate(plan, step)
    for group in engine.optimizer.param_groups:
        group["lr"] = rate
    total, norm = 0.0, 0.0
    for part in mine:
        batch = collate(part or [batches.masked(chosen[0])], rank.pad_id)
        nll, _ = label_loss(engine, {name: tensor.to(rank.device) for name, tensor in batch.items()})
        # DeepSpeed averages over ranks and over micro-batches; the mean wanted is over label tokens.
        loss = nll.sum() * (rank.world * plan.gradient_accumulation_steps / labels)
        engine.backward(loss)
        total += float(nll.detach().sum())
        norm = _gradient_norm(engine, plan)
        engine.step()
    loss_sum = _sum_over_ranks(total, rank.device)
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


def _gradient_norm(engine: Any, plan: TrainingPlan) -> float:
    """The norm before clipping; DeepSpeed itself only knows it when ZeRO partitions the gradients."""
    import torch

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


def _sum_over_ranks(value: float, device: str) -> float:
    import torch
    import torch.distributed

    tensor = torch.tensor(value, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(tensor)
    return float(tensor)


def peak_memory_gib(device: str) -> float:
    """Peak memory of this process: allocated on the GPU, resident on a CPU, in GiB."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def _finish(rank: Rank, loss: float, seconds: float) -> None:
    """Probe, save, and say so last."""
    import torch.distributed

    probe = _probe(rank)
    parameters = _whole_parameters(rank)
    if not rank.is_first:
        torch.distributed.barrier()
        return
    records.finite(loss, "the last training loss")
    folder = rank.folder
    _save_probe(folder / job.PROBE, probe)
    target = folder / job.ADAPTER
    export = model.save(rank.engine.module, rank.job, target, parameters)
    files = tuple(
        file_ref(path, folder) for path in sorted(target.iterdir()) if path.suffix in {".json", ".safetensors"}
    )
    steps = [json.loads(line) for line in (folder / job.METRICS).read_text().splitlines()]
    adapter = Adapter(
        spec=rank.job.spec,
        directory=job.ADAPTER,
        files=files,
        digest=next(file.sha256 for file in files if file.path.endswith(".safetensors")),
        probe_file=file_ref(folder / job.PROBE, folder),
        metrics_file=file_ref(folder / job.METRICS, folder),
        steps=rank.plan.total_steps,
        final_loss=loss,
        tokens=rank.tokens,
        label_tokens=rank.label_tokens,
        seconds=sum(step["tokens"] / step["tokens_per_second"] for step in steps),
        peak_memory_gib=max(step["memory_gib"] for step in steps),
        num_processes=rank.world,
        zero_stage=rank.plan.zero_stage,
        resumed_from=tuple(rank.resumed),
        export=export,
    )
    records.write(folder / job.RESULT, adapter)
    print(f"finished after {seconds:.0f} s in this process", flush=True)
    torch.distributed.barrier()


def _probe(rank: Rank) -> dict[str, Any]:
    """Logits of the trained model at a few label positions of held-out rows, one row a batch so that nothing is padded."""
    import torch

    network = rank.engine.module.eval()
    found: dict[str, Any] = {}
    with torch.no_grad():
        for index, row in enumerate(read_rows(Path(rank.job.probe_tokens))[:PROBE_ROWS]):
            ids = torch.tensor([row.input_ids], device=rank.device)
            places = [i - 1 for i, is_label in enumerate(row.label_mask) if is_label][:PROBE_POSITIONS]
            logits = network(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits[0, places]
            found[f"ids.{index}"] = ids[0].cpu()
            found[f"places.{index}"] = torch.tensor(places)
            found[f"logits.{index}"] = logits.float().cpu().contiguous()
    return found


def _save_probe(path: Path, probe: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    save_file(probe, path)


def _whole_parameters(rank: Rank) -> dict[str, Any]:
    """Trainable parameters by name, gathered when ZeRO-3 has split them; called by every rank."""
    import contextlib

    import deepspeed

    named = [(name, p) for name, p in rank.engine.module.named_parameters() if p.requires_grad]
    split = rank.plan.zero_stage == 3
    gathered = deepspeed.zero.GatheredParameters([p for _, p in named]) if split else contextlib.nullcontext()
    with gathered:
        return {name: p.detach().float().cpu().clone() for name, p in named}


if __name__ == "__main__":
    main(Path(sys.argv[1]))
