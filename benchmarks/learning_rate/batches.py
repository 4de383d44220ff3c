"""How LoRA's best learning rate moves with steps, batch, rank and alpha, and which batch is best at equal rows: MiniLM's last layer; resumable.

PYTHONPATH=DATA python -m benchmarks.learning_rate.batches             # trains what is missing, then judges
PYTHONPATH=DATA python -m benchmarks.learning_rate.batches --judge     # trains nothing

Every case is searched over learning rates a factor 1.5 apart, from the shipped one, until the best has a worse one on either side; the best of a
batch is trained with two more seeds. Even held-out rows choose, odd ones judge. The criteria are in docs/log.md.
"""

import argparse
import copy
import functools
import json
import math
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, final

from benchmarks.last_layer import Subject, plan, subject
from benchmarks.whether import gradient
from lora_select.evaluation.model_losses import row_losses
from lora_select.records import AdapterSpec, TrainingPlan, write_text
from lora_select.selection.calibration import reference_rate, shipped
from lora_select.training import trials

FILE = Path(__file__).parents[1] / "results" / "batches.json"
TASKS = ("section-latest", "news", "newsgroup")
ROWS, HELD_OUT = 768, 256
BATCHES, SEEN = (4, 8, 16, 32, 64), (384, 1536)
"""Rows of a step, and rows gone over in a whole training: each pair is one case of a task."""
STEPS = (24, 96, 400, 800)
"""At a batch of 8, beside the 48 and 192 of the batches."""
RANKS, RANK_STEPS = (4, 16, 64), 48
"""With alpha twice the rank, and with alpha equal to it."""
FACTOR, LOWEST, HIGHEST = 1.5, -4, 16
START = 1e-4
WARMED = 0.1


@final
@dataclass(frozen=True)
class Case:
    """One kind of training; its best learning rate is looked for."""

    task: str
    batch: int
    steps: int
    r: int = 16
    alpha: int = 16

    @property
    def name(self) -> str:
        return f"{self.task}, batch {self.batch}, {self.steps} steps, r {self.r}, alpha {self.alpha}"


def cases() -> tuple[Case, ...]:
    """Short ones first."""
    every = [Case(task, batch, SEEN[0] // batch) for task in TASKS for batch in BATCHES]
    every += [Case(task, 8, RANK_STEPS, r, alpha) for task in TASKS for r in RANKS for alpha in (2 * r, r)]
    every += [Case(task, 8, steps) for steps in STEPS[:2] for task in TASKS]
    every += [Case(task, batch, SEEN[1] // batch) for task in TASKS for batch in BATCHES]
    every += [Case(task, 8, steps) for steps in STEPS[2:] for task in TASKS]
    return tuple(dict.fromkeys(every))


@functools.cache
def loaded(task: str) -> Subject:
    """The task, once."""
    return subject(task, ROWS, HELD_OUT)


def rate_at(place: int) -> float:
    """The grid of learning rates."""
    return float(f"{START * FACTOR**place:.2e}")


def place_of(rate: float) -> int:
    """The nearest of the grid."""
    return min(max(round(math.log(rate / START) / math.log(FACTOR)), LOWEST), HIGHEST)


def train(case: Case, rate: float, seed: int) -> list[float]:
    """Mean loss of the even and of the odd held-out rows after a training: the first choose, the second judge."""
    known = loaded(case.task)
    planned, spec = _planned(case, rate, seed), known.spec(rate, case.r, case.alpha)
    with trials.adapted(known.model, spec, planned) as network:
        made = trials.train(network, spec, planned, known.train, known.pad_id)
        if len(made) < planned.total_steps:
            return [math.inf, math.inf]
        losses = row_losses(network.eval(), known.held_out, known.pad_id, 16, "cpu")
    return [round(statistics.fmean(losses[start::2]), 5) for start in (0, 1)]


def _planned(case: Case, rate: float, seed: int) -> TrainingPlan:
    return plan(rate, seed, ROWS, case.steps * case.batch / ROWS, batch=case.batch, steps=case.steps)


def noise(task: str) -> dict[str, float]:
    """tr(Sigma) / |G|^2 in rows: of the base, and after a warm-up at the shipped learning rate with a batch of 8."""
    known = loaded(task)
    found = {"at the start": _scale(known, known.model)}
    case = Case(task, 8, 96)
    rate = reference_rate(case.steps, shipped(), known.moves)
    spec: AdapterSpec = known.spec(rate)
    short = plan(rate, 0, ROWS, 1.0, batch=8, steps=round(WARMED * case.steps))
    with trials.adapted(known.model, spec, short) as network:
        trials.train(network, spec, short, known.train, known.pad_id)
        found["after warm-up"] = _scale(known, copy.deepcopy(network).merge_and_unload())
    return found


def _scale(known: Subject, model: Any) -> float:
    signal, error, spread = gradient(model, known.train[:256], known.pad_id)
    return round(spread / max(signal, error), 1)


def search(case: Case, runs: dict[str, list[float]], keep: Any) -> None:
    """Every run of a case that is missing."""
    begun = place_of(reference_rate(case.steps, shipped(), loaded(case.task).moves))
    places = {place for place in range(LOWEST, HIGHEST + 1) if key(case, rate_at(place), 0) in runs} or {begun}
    while True:
        for place in sorted(places):
            if (name := key(case, rate_at(place), 0)) not in runs:
                runs[name] = train(case, rate_at(place), 0)
                keep()
        best = min(places, key=lambda place: runs[key(case, rate_at(place), 0)][0])
        missing = {best - 1, best + 1} - places
        missing = {place for place in missing if LOWEST <= place <= HIGHEST}
        if not missing:
            break
        places |= missing
    for seed in seeds(case)[1:]:
        if (name := key(case, rate_at(best), seed)) not in runs:
            runs[name] = train(case, rate_at(best), seed)
            keep()


def seeds(case: Case) -> tuple[int, ...]:
    """Three where batches are compared, else one."""
    return (0, 1, 2) if case.batch * case.steps in SEEN and (case.r, case.alpha) == (16, 16) else (0,)


def key(case: Case, rate: float, seed: int) -> str:
    """A run's name."""
    return f"{case.name}, {rate:g}, seed {seed}"


@final
@dataclass(frozen=True)
class Best:
    """Of a case: the vertex of the parabola through the best learning rate and its neighbours; judged losses of its seeds."""

    rate: float
    seeds: tuple[float, ...]

    @property
    def loss(self) -> float:
        return statistics.fmean(self.seeds)


def best_of(case: Case, runs: Mapping[str, Sequence[float]]) -> Best | None:
    """None where the case was not run to its end."""
    places = [place for place in range(LOWEST, HIGHEST + 1) if key(case, rate_at(place), 0) in runs]
    if not places:
        return None
    chose = {place: runs[key(case, rate_at(place), 0)][0] for place in places}
    best = min(places, key=lambda place: chose[place])
    names = [key(case, rate_at(best), seed) for seed in seeds(case)]
    if not {best - 1, best + 1} <= set(places) or not all(name in runs for name in names):
        return None
    below, here, above = (chose[place] for place in (best - 1, best, best + 1))
    bend = below + above - 2 * here
    shift = (below - above) / (2 * bend) if math.isfinite(bend) and bend > 0 else 0.0
    rate = rate_at(best) * FACTOR ** min(max(shift, -0.5), 0.5)
    return Best(rate, tuple(runs[name][1] for name in names))


def powers(found: Mapping[Case, Best]) -> dict[str, dict[str, float]]:
    """Least squares of log rate on log batch and log steps, task by task."""
    import numpy

    made = {}
    for task in TASKS:
        own = [(case, best) for case, best in found.items() if case.task == task and (case.r, case.alpha) == (16, 16)]
        if len({case.batch for case, _ in own}) < 3 or len({case.batch * case.steps for case, _ in own}) < 2:
            continue
        x = numpy.array([[1.0, math.log(case.batch), math.log(case.steps)] for case, _ in own])
        y = numpy.array([math.log(best.rate) for _, best in own])
        fitted, *_ = numpy.linalg.lstsq(x, y, rcond=None)
        rms = float(numpy.sqrt(numpy.mean((x @ fitted - y) ** 2)))
        made[task] = {"batch": float(fitted[1]), "steps": float(fitted[2]), "rms": rms, "cases": len(own)}
    return made


def judge(known: Mapping[str, Any]) -> list[str]:
    """Every criterion with its number."""
    runs = known["runs"]
    found = {case: best for case in cases() if (best := best_of(case, runs))}
    lines = [f"{len(runs)} runs, {len(found)} of {len(cases())} cases ended"]
    lines += [f"{case.name}: best {best.rate:.2g}, loss {best.loss:.4f}" for case, best in found.items()]
    for task, made in powers(found).items():
        lines.append(
            f"{task}: rate ~ batch^{made['batch']:.2f} steps^{made['steps']:.2f}, rms {made['rms']:.2f} of {made['cases']} cases"
        )
    lines += [line for task in TASKS for line in _steps(task, found)]
    lines += [line for task in TASKS for line in _alpha(task, found)]
    return lines + _batch(known, found)


def _steps(task: str, found: Mapping[Case, Best]) -> list[str]:
    steps_of = sorted({*STEPS, *(seen // 8 for seen in SEEN)})
    own = [(steps, found[case].rate) for steps in steps_of if (case := Case(task, 8, steps)) in found]
    if len(own) < 3:
        return []
    x, y = [math.log(steps) for steps, _ in own], [math.log(rate) for _, rate in own]
    told = ", ".join(f"{steps}: {rate:.2g}" for steps, rate in own)
    return [f"{task}, batch 8: rate ~ steps^{statistics.linear_regression(x, y).slope:.2f} ({told})"]


def _alpha(task: str, found: Mapping[Case, Best]) -> list[str]:
    lines = []
    for words, times in (("2 r", 2), ("r", 1)):
        own = {r: found[case].rate for r in RANKS if (case := Case(task, 8, RANK_STEPS, r, times * r)) in found}
        if 16 in own:
            told = ", ".join(f"r {r}: {rate / own[16]:.2f}" for r, rate in own.items())
            lines.append(f"{task}, alpha = {words}: best rate over that of r 16: {told}")
    return lines


def _batch(known: Mapping[str, Any], found: Mapping[Case, Best]) -> list[str]:
    """The largest batch within one seed SD of the best at equal rows, and what noise scales name."""
    lines, hits, total = (
        [],
        dict.fromkeys(("at the start", "after warm-up", "always 8", "always 16", "always 32"), 0),
        0,
    )
    for seen in SEEN:
        for task in TASKS:
            own = {batch: found[case] for batch in BATCHES if (case := Case(task, batch, seen // batch)) in found}
            if len(own) < len(BATCHES) or task not in known["noise"]:
                continue
            sd = math.sqrt(statistics.fmean(statistics.variance(best.seeds) for best in own.values()))
            least = min(best.loss for best in own.values())
            good = [batch for batch, best in own.items() if best.loss <= least + sd]
            scales = known["noise"][task]
            picks = {name: nearest(scale) for name, scale in scales.items()}
            picks |= {"always 8": 8, "always 16": 16, "always 32": 32}
            total += 1
            for name, pick in picks.items():
                hits[name] += pick in good
            told = ", ".join(f"{batch}: {best.loss:.4f}" for batch, best in own.items())
            lines.append(
                f"{task}, {seen} rows: {told}; seed SD {sd:.4f}; within it {good}; noise scale {scales}, so {picks['at the start']} "
                f"and {picks['after warm-up']}"
            )
    return [*lines, *(f"{name}: within one seed SD of the best in {count} of {total}" for name, count in hits.items())]


def nearest(scale: float) -> int:
    """The batch of the list that is nearest in its logarithm."""
    return min(BATCHES, key=lambda batch: abs(math.log(batch / max(scale, 1.0))))


def main() -> None:
    import torch

    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--judge", action="store_true", help="train nothing")
    options = parser.parse_args()
    known: dict[str, Any] = {"noise": {}, "runs": {}}
    if FILE.is_file():
        known = json.loads(FILE.read_text(encoding="utf-8"))

    def keep() -> None:
        known["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
        known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
        write_text(FILE, json.dumps(known) + "\n")

    if not options.judge:
        for task in TASKS:
            if task not in known["noise"]:
                known["noise"][task] = noise(task)
                keep()
        for case in cases():
            search(case, known["runs"], keep)
            if best := best_of(case, known["runs"]):
                print(f"{case.name}: best {best.rate:.2g}, loss {best.loss:.4f}", flush=True)
    print(*judge(known), sep="\n")


if __name__ == "__main__":
    main()
