"""A few real micro-batches of the real model on this machine, before the plan is settled: `python -m lora_select.training.planning.measure`.

It runs in a process of its own, so that its peak memory is that of a rank and a lack of memory does not take the flow along.
At ZeRO-3 a single process is no rank, for weights are gathered from all of them while a step runs: there all ranks run (`trial.py`).
"""

import dataclasses
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from lora_select import environment, models
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import TrainingPlan, write_text
from lora_select.training import failures, heartbeat, job
from lora_select.training.job import TrainingJob
from lora_select.training.supervisor import launch
from lora_select.training.worker import batches

ANSWER = "measured.json"
TIMED_SECONDS = 8.0
TIMED_BATCHES = 3
LIMIT_SECONDS = 900
TOO_LONG = f"speed was not measured: a few micro-batches took more than {LIMIT_SECONDS} s"
RANK = "lora_select.training.planning.measure_ranks"


@dataclass(frozen=True)
class Measured:
    """What a rank did here. `refusal` says why rows must not be packed; `peak_gib` is of one rank; `tokens` were timed.

    `processor_seconds` are those of all its threads in the same time, which other work on the machine moves less. `ranks` that
    ran together had DeepSpeed and the optimizer's state; where it is 0, one process ran and had neither.
    """

    refusal: str | None
    tokens: int
    seconds: float
    peak_gib: float
    heaviest_tokens: int
    processor_seconds: float = 0.0
    ranks: int = 0


def measure(told: TrainingJob, folder: Path) -> Measured | str:
    """Run the measurement, or say in a sentence why there is none.

    Args:
        told: the job as it would be trained; its plan says whether packing is wanted.
        folder: where job and answer go.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ANSWER).unlink(missing_ok=True)
    if told.plan.zero_stage == 3 and told.plan.nodes == 1:  # the ranks of other nodes cannot be had beforehand
        return _by_ranks(told, folder)
    file = job.write_job(folder, told)
    command = [sys.executable, "-m", "lora_select.training.planning.measure", str(file)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return TOO_LONG
    if not (folder / ANSWER).is_file():
        lines = done.stderr.strip().splitlines() or [f"code {done.returncode}"]
        return f"speed was not measured: the attempt ended with {lines[-1][:200]}"
    return _answer(folder)


def _by_ranks(told: TrainingJob, folder: Path) -> Measured | str:
    """The ranks themselves; a supervisor ends them with this process."""
    file, log = job.write_job(folder, told), folder / job.LOG
    heartbeat.clear(folder)
    log.unlink(missing_ok=True)
    process = launch.supervisor(file, log, module=RANK)
    try:
        code = process.wait(LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        return TOO_LONG
    finally:
        launch.stop(process)
    if not (folder / ANSWER).is_file():
        why = failures.diagnose(folder, log, failures.Ending(code)).message
        return f"speed was not measured: the attempt ended with {' '.join(why.split())[:200]}"
    return _answer(folder)


def _answer(folder: Path) -> Measured:
    return Measured(**json.loads((folder / ANSWER).read_text(encoding="utf-8")))


def write_answer(folder: Path, found: Measured) -> None:
    """Leave what was measured where :func:`measure` looks for it."""
    write_text(folder / ANSWER, json.dumps(dataclasses.asdict(found), indent=2) + "\n")


def main(job_file: Path) -> None:
    """Build the model, prove packing, run the heaviest micro-batch, then time a few ordinary ones."""
    told = job.read_job(job_file)
    environment.leave_out(told.quantized_base)
    import torch

    if told.plan.device == "cpu":
        torch.set_num_threads(told.plan.threads_per_process)
    torch.manual_seed(told.plan.seed)
    write_answer(job_file.parent, _measured(told))


def _measured(told: TrainingJob) -> Measured:
    from lora_select.training.worker import loss, model, packing, rehearsal
    from lora_select.training.worker.loop import peak_memory_gib

    device = "cuda:0" if told.plan.device == "cuda" else "cpu"
    trained, kept = batches.rows_of(told)
    rows = [*trained, *kept]
    pad_id = models.pad_id(models.load_tokenizer(told.base_path))
    network = model.build(told, device)
    refusal = packing.refusal(network, rehearsal.vocabulary(network)) if told.plan.packing else None
    plan = dataclasses.replace(told.plan, packing=told.plan.packing and refusal is None)
    loss.enable(network)
    heaviest = batches.heaviest(rows, plan)
    rehearsal.run(network, rehearsal.batch_of(heaviest, plan, pad_id, device))
    tokens, seconds, processor = 0, 0.0, 0.0
    for part in _ordinary(rows, plan):
        began, spent = time.monotonic(), time.process_time()
        rehearsal.run(network, rehearsal.batch_of(part, plan, pad_id, device))
        wait(device)
        seconds += time.monotonic() - began
        processor += time.process_time() - spent
        tokens += sum(len(row.input_ids) for row in part)
        if seconds > TIMED_SECONDS:
            break
    held = batches.held_tokens(heaviest, plan.packing)
    return Measured(refusal, tokens, seconds, peak_memory_gib(device), held, processor)


def _ordinary(rows: list[TokenRow], plan: TrainingPlan) -> list[list[TokenRow]]:
    """The first micro-batches of the training, as the steps will take them."""
    every = (part for step in first_steps(rows, plan) for parts in step for part in parts)
    return [part for part in every if part][:TIMED_BATCHES]


def first_steps(rows: list[TokenRow], plan: TrainingPlan) -> list[list[list[list[TokenRow]]]]:
    """Rows of the first steps as they will be dealt, by step, rank and micro-batch: as many steps as batches are timed."""
    steps = range(min(plan.total_steps, TIMED_BATCHES))
    dealt = (batches.rows_of_step(len(rows), plan.epochs, plan.effective_batch_size, plan.seed, step) for step in steps)
    return [batches.dealt([rows[number] for number in numbers], plan) for numbers in dealt]


def wait(device: str) -> None:
    """Until the device has done what it was given."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
