"""A few real micro-batches of the real model on this machine, before the plan is settled: `python -m lora_select.training.measure`.

It runs in a process of its own, so that its peak memory is that of a rank and a lack of memory does not take the flow along.
"""

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lora_select import models
from lora_select.data.tokens import TokenRow, read_rows
from lora_select.records import write_text
from lora_select.training import batches, job
from lora_select.training.job import TrainingJob

ANSWER = "measured.json"
TIMED_SECONDS = 8.0
TIMED_BATCHES = 3
LIMIT_SECONDS = 900


@dataclass(frozen=True)
class Measured:
    """What a rank did here. `refusal` says why rows must not be packed; `peak_gib` is of one rank; `tokens` were timed.

    `processor_seconds` are those of all its threads in the same time, which other work on the machine moves less.
    """

    refusal: str | None
    tokens: int
    seconds: float
    peak_gib: float
    heaviest_tokens: int
    processor_seconds: float = 0.0


def measure(told: TrainingJob, folder: Path) -> Measured | str:
    """Run the measurement, or say in a sentence why there is none.

    Args:
        told: the job as it would be trained; its plan says whether packing is wanted.
        folder: where job and answer go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWER).unlink(missing_ok=True)
    file = job.write_job(folder, told)
    command = [sys.executable, "-m", "lora_select.training.measure", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return f"speed was not measured: a few micro-batches took more than {LIMIT_SECONDS} s"
    if not (folder / ANSWER).is_file():
        lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        return f"speed was not measured: the attempt ended with {lines[-1][:200]}"
    return Measured(**json.loads((folder / ANSWER).read_text(encoding="utf-8")))


def main(job_file: Path) -> None:
    """Build the model, prove packing, run the heaviest micro-batch, then time a few ordinary ones."""
    told = job.read_job(job_file)
    import torch

    if told.plan.device == "cpu":
        torch.set_num_threads(told.plan.threads_per_process)
    torch.manual_seed(told.plan.seed)
    write_text(job_file.parent / ANSWER, json.dumps(dataclasses.asdict(_measured(told)), indent=2) + "\n")


def _measured(told: TrainingJob) -> Measured:
    from lora_select.training import loss, model, packing, smoke
    from lora_select.training.steps import peak_memory_gib

    device = "cuda:0" if told.plan.device == "cuda" else "cpu"
    rows = read_rows(Path(told.train_tokens))
    pad_id = models.pad_id(models.load_tokenizer(told.base_path))
    network = model.build(told, device)
    refusal = packing.refusal(network, smoke.vocabulary(network)) if told.plan.packing else None
    plan = dataclasses.replace(told.plan, packing=told.plan.packing and refusal is None)
    loss.enable(network)
    heaviest = batches.heaviest(rows, plan)
    smoke.run(network, smoke.batch_of(heaviest, plan, pad_id, device))
    tokens, seconds, processor = 0, 0.0, 0.0
    for part in _ordinary(rows, plan):
        began, spent = time.monotonic(), time.process_time()
        smoke.run(network, smoke.batch_of(part, plan, pad_id, device))
        _wait(device)
        seconds += time.monotonic() - began
        processor += time.process_time() - spent
        tokens += sum(len(row.input_ids) for row in part)
        if seconds > TIMED_SECONDS:
            break
    held = batches.held_tokens(heaviest, plan.packing)
    return Measured(refusal, tokens, seconds, peak_memory_gib(device), held, processor)


def _ordinary(rows: list[TokenRow], plan: Any) -> list[list[TokenRow]]:
    """The first micro-batches of the training, as the steps will take them."""
    found = []
    for step in range(plan.total_steps):
        numbers = batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step)
        found += [part for parts in batches.dealt([rows[number] for number in numbers], plan) for part in parts if part]
        if len(found) >= TIMED_BATCHES:
            break
    return found[:TIMED_BATCHES]


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
