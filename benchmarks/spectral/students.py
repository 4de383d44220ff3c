"""Whether a student of a planted update's own kind comes nearer to its teacher than LoRA at as many parameters: MiniLM's last block; resumable.

PYTHONPATH=DATA python -m benchmarks.spectral.students [--minutes 10]      # adds `students` to results/planted.json

Every student is trained at learning rates a factor 3 apart until the best lies inside; one set of kept rows chooses the rate, another judges. Divergences are KL(teacher || student), nats a row.
"""

import argparse
import json
import math
import platform
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.last_layer import Subject, plan, subject
from benchmarks.spectral.planted import (
    FILE,
    MICROBATCHES,
    PLAIN,
    ROWS,
    SIZE,
    TASK,
    divergence,
    measured,
    moments,
    teacher,
)
from lora_select.data.labels.tokens import TokenRow, collate
from lora_select.data.microbatches import draw
from lora_select.initialization import write_initialization
from lora_select.records import write_text
from lora_select.selection.calibration import LONG_RATE, reference_rate, shipped
from lora_select.selection.candidates import Candidate
from lora_select.selection.learning_rate import lora_displacement, published_rate, rate_factor
from lora_select.spectral.linear_layers import linear_layers
from lora_select.training import trials
from lora_select.training.worker import batches as batching
from lora_select.training.worker import optimizer
from lora_select.training.worker.loop import learning_rate
from lora_select.variants import named
from lora_select.variants.base import Variant

TRAINED, CHOOSE, JUDGE, STEPS, BATCH = 512, 64, 128, 128, 8
R, SPREAD, WIDEST = 8, 3.0, 4
MATCHING = {
    PLAIN: "lora",
    "low rank, leading inputs": "eva",
    "block rotation": "oft",
    "row and column scale": "hira",
    "sparse": "shira",
    "hadamard": "hira",
}
BESIDE = {"row and column scale": ("ia3", "dora"), PLAIN: ("eva", "oft", "hira", "shira", "ia3", "dora")}
"""Students that are told and do not count as a hit; on the first teacher each would be a false alarm."""
HALF = 0.5


def pairs() -> Iterator[tuple[str, str]]:
    """Every teacher with LoRA and its matching student, then the others."""
    for kind, student in MATCHING.items():
        yield from dict.fromkeys(((kind, "lora"), (kind, student)))
    for kind, others in BESIDE.items():
        yield from ((kind, student) for student in others)


def matched(candidate: Candidate) -> float:
    """LoRA's shipped rate over the displacement ratio, or the published share of it."""
    home = reference_rate(STEPS, shipped(), lora_displacement(candidate))
    published = published_rate(candidate)
    return home * (rate_factor(candidate) if published is None else published / LONG_RATE)


def next_power(runs: Sequence[Mapping[str, float]]) -> int | None:
    """The next rate as a power of three times the matched one: -1, 0, 1, and on from an end while it is the best; None when there is none."""
    done = {int(run["power"]): run["choose"] for run in runs}
    for power in (0, -1, 1):
        if power not in done:
            return power
    best = min(done, key=lambda power: done[power] if math.isfinite(done[power]) else math.inf)
    return next((best + step for step in (1, -1) if best + step not in done and abs(best + step) <= WIDEST), None)


def train(
    task: Subject, target: nn.Module, variant: Variant, rate: float, tensors: Path
) -> tuple[int, dict[str, float]]:
    """Trained parameters, and the divergence on the rows that choose and on those that judge."""
    modules = sorted(linear_layers(task.model))
    spec = variant.spec(
        targets="all-linear",
        target_modules=tuple(modules),
        learning_rate=rate,
        placed={"target_modules": modules, "task_type": "CAUSAL_LM"},
    )
    steps = plan(rate, 0, TRAINED, STEPS * BATCH / TRAINED, batch=BATCH, steps=STEPS)
    factors = tensors.parent / "factors.safetensors"
    start = write_initialization(spec, tensors.parent, tensors, factors)  # EVA's, which reads no weights
    loss = divergence(target)
    with trials.adapted(task.model, spec, steps, str(start) if start else None) as network:
        made = optimizer.make_optimizer(network, spec, steps)
        trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
        for step in range(STEPS):
            numbers = batching.rows_of_step(TRAINED, steps.epochs, BATCH, steps.seed, step)
            optimizer.set_rate(made, learning_rate(steps, step))
            total, _ = loss(network, collate([task.train[number] for number in numbers], task.pad_id))
            total.mean().backward()
            torch.nn.utils.clip_grad_norm_(trained, steps.max_grad_norm)
            made.step()
            made.zero_grad()
        parts = {"choose": task.held_out[:CHOOSE], "judge": task.held_out[CHOOSE : CHOOSE + JUDGE]}
        network.eval()
        found = {name: _mean(loss, network, rows, task.pad_id) for name, rows in parts.items()}
    return sum(parameter.numel() for parameter in trained), found


def _mean(
    loss: Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]],
    network: nn.Module,
    rows: Sequence[TokenRow],
    pad_id: int,
) -> float:
    with torch.no_grad():
        parts = [loss(network, collate(rows[at : at + 32], pad_id))[0] for at in range(0, len(rows), 32)]
    return round(float(torch.cat(parts).mean()), 5)


def judged(students: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each student's divergence at the rate that its choosing rows took, over LoRA's; the criterion's two numbers."""
    best: dict[str, dict[str, float]] = {}
    for kind, found in students.items():
        chosen = {
            name: min(
                (run for run in one["runs"] if math.isfinite(run["choose"])),
                key=lambda run: run["choose"],
            )["judge"]
            for name, one in found.items()
            if one["runs"]
        }
        if "lora" in chosen:
            best[kind] = {name: round(value / chosen["lora"], 3) for name, value in chosen.items()}
    hits = [k for k, over in best.items() if k != PLAIN and over.get(MATCHING[k], math.inf) <= HALF]
    alarms = [name for name, over in best.get(PLAIN, {}).items() if over <= HALF]
    return {"over_lora": best, "hits": hits, "false_alarms": alarms}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1e9, help="nothing new is begun after this long")
    end = time.monotonic() + 60 * parser.parse_args().minutes
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    students: dict[str, dict[str, Any]] = known.setdefault("students", {}).setdefault("kinds", {})
    task = subject(TASK, TRAINED, CHOOSE + JUDGE)
    batches = draw(subject(TASK, ROWS, 32).train, microbatches=MICROBATCHES, size=SIZE, seed=0, pad_id=task.pad_id)
    seen = moments(task.model, batches)
    for kind in dict.fromkeys(kind for kind, _ in pairs()):
        wanted = [student for of, student in pairs() if of == kind and not _whole(students, kind, student)]
        if not wanted:
            continue
        target = teacher(task.model, kind, seen)
        with tempfile.TemporaryDirectory() as folder:
            spectra = measured(task.model, target, batches, Path(folder))
            for student in wanted:
                variant = named(student, R)
                candidate = Candidate(variant, "all-linear", (), spectra.layers)
                held = students.setdefault(kind, {}).setdefault(student, {"runs": []})
                while (power := next_power(held["runs"])) is not None:
                    rate = float(f"{matched(candidate) * SPREAD**power:.2e}")
                    if time.monotonic() > end:
                        return
                    began = time.process_time()
                    held["parameters"], found = train(task, target, variant, rate, Path(folder) / "spectra.safetensors")
                    held["runs"].append({"rate": rate, "power": power, **found})
                    told = known["students"]
                    told |= judged(students)
                    told["untrained"] = told.get("untrained", {}) | {
                        kind: _mean(divergence(target), task.model, task.held_out[CHOOSE:], task.pad_id)
                    }
                    told["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
                    told["versions"] = {name: metadata.version(name) for name in ("torch", "transformers", "peft")}
                    write_text(FILE, json.dumps(known, indent=1) + "\n")
                    print(f"{kind}, {student} at {rate:g}: {found}, {time.process_time() - began:.0f} s", flush=True)


def _whole(students: Mapping[str, Any], kind: str, student: str) -> bool:
    return next_power(students.get(kind, {}).get(student, {"runs": ()})["runs"]) is None


if __name__ == "__main__":
    main()
