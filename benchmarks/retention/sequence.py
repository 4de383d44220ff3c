"""Three tasks one after the other on one model, each update merged before the next is trained: what is left of the first two; resumable.

PYTHONPATH=DATA python -m benchmarks.retention.sequence minilm
PYTHONPATH=DATA python -m benchmarks.retention.sequence smollm2-135m --minutes 10

Arms: `raw`; `filter`, with the sums of the earlier tasks' second moments (no rows), at the strength of the product's rule; `filter-many`, which
chooses on more rows; `replay` of 5 % of the earlier tasks' rows; `filter-earlier`, in which no general text is a reference;
`filter-prose-decides`, in which the decision counts no earlier task.
"""

import argparse
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.retention.learners import LEARNERS, Learner
from benchmarks.retention.study import OTHER, about
from lora_select.data.labels.tokens import TokenRow
from lora_select.records import write_text
from lora_select.retention import moments
from lora_select.retention.forms import Update
from lora_select.retention.moments import Moments

FILES = {"minilm": OTHER / "sequence.json", "smollm2-135m": OTHER / "sequence-smollm2.json"}
REPLAY = 0.05
ALLOWED = 0.1
"""Of the gain that a task had after its own training: what of it may be lost."""


def main() -> None:
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=LEARNERS, nargs="?", default="minilm")
    parser.add_argument("--arms", nargs="*", help="default: all of the model's")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument("--work", type=Path, default=Path("runs/sequence"))
    parser.add_argument("--minutes", type=float, default=1e9, help="no training is begun after this long")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    file = FILES[options.model]
    kind = LEARNERS[options.model]
    for seed in options.seeds:
        for arm in options.arms or kind.arms:
            name = f"{arm}, seed {seed}"
            found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
            held = found.get(name, {"losses": [], "chosen": [], "processor_seconds": 0.0})
            if len(held["losses"]) > len(kind.order) or time.monotonic() > end:
                continue
            walk = Walk(kind(), arm, seed, options.work / options.model, held)
            while not walk.over and time.monotonic() < end:
                began = time.process_time()
                walk.step()
                held["processor_seconds"] = round(held["processor_seconds"] + time.process_time() - began, 1)
                found = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
                file.parent.mkdir(parents=True, exist_ok=True)
                write_text(file, json.dumps(found | {name: held} | about(), indent=1) + "\n")
                print(name, held["losses"][-1], held["chosen"][-1:], held["processor_seconds"], flush=True)
    print(*report(json.loads(file.read_text(encoding="utf-8"))), sep="\n")


class Walk:
    """One arm with one seed. `held` grows by the losses after each training: of the task itself, the earlier ones and the next."""

    def __init__(self, learner: Learner, arm: str, seed: int, work: Path, held: dict[str, Any]) -> None:
        self.learner, self.arm, self.seed, self.work, self.held = learner, arm, seed, work, held
        work.mkdir(parents=True, exist_ok=True)
        for index in range(len(held["losses"]) - 1):
            _merge(learner.modules, _read(self._file("merged", index)))

    @property
    def over(self) -> bool:
        return len(self.held["losses"]) > len(self.learner.order)

    def step(self) -> None:
        """The next training, or first of all the untouched model."""
        done = len(self.held["losses"])
        if done:
            self._train(done - 1)
        last = done == len(self.learner.order)
        losses = {name: self.learner.loss(name) for name in self.learner.order[: done + 1]}
        self.held["losses"].append(losses)
        if last or not done:
            self.held.setdefault("texts", {})["after" if last else "before"] = self.learner.texts()

    def _train(self, index: int) -> None:
        task = self.learner.task(self.learner.order[index])
        rows: list[TokenRow] = list(task.train)
        if self.arm == "replay":
            old = [self.learner.task(name).train for name in self.learner.order[:index]]
            rows += [row for part in old for row in part[: round(REPLAY * len(part))]]
        # nothing was done to the model before the first training, whatever the arm
        folder = self.work / (f"{self.arm}-{self.seed}-{index}" if index else f"first-{self.seed}")
        form = self.learner.train(rows, self.seed, folder)
        updates: Mapping[str, Update] = form.updates
        if self.arm.startswith("filter"):
            earlier = moments.load(self._file("moments", index - 1)) if index else None
            most = self.learner.many if self.arm == "filter-many" else self.learner.few
            kept = self.learner.keep(form, task, earlier, self.arm, most)
            updates = kept.updates
            self.held["chosen"].append(kept.chosen)
            if index + 1 < len(self.learner.order):
                joined: Moments = kept.sums if earlier is None else earlier.joined(kept.sums)
                moments.save(joined, self._file("moments", index))
            self._file("moments", index - 2).unlink(missing_ok=True)  # the last but one is for a start anew
        _save(updates, self._file("merged", index))
        _merge(self.learner.modules, updates)

    def _file(self, what: str, index: int) -> Path:
        return self.work / f"{self.arm}-{self.seed}-{index}-{what}.safetensors"


def _save(updates: Mapping[str, Update], file: Path) -> None:
    from safetensors.torch import save_file

    held = {f"{name}|a": one.a.contiguous() for name, one in updates.items()}
    save_file(held | {f"{name}|b": one.b.contiguous() for name, one in updates.items() if one.b is not None}, file)


def _read(file: Path) -> dict[str, Update]:
    from safetensors.torch import load_file

    held = load_file(file)
    return {name: Update(held[f"{name}|a"], held.get(f"{name}|b")) for name in {key.rpartition("|")[0] for key in held}}


def _merge(modules: Mapping[str, nn.Module], updates: Mapping[str, Update]) -> None:
    with torch.no_grad():
        for name, update in updates.items():
            weight: Any = modules[name].weight
            weight += update.b @ update.a if update.b is not None else update.a


def lost(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of every task's own gain but the last's, the share that is gone after the last training."""
    found = {}
    for index, name in enumerate(list(losses[-1])[:-1]):
        before, own, last = (losses[at][name] for at in (index, index + 1, -1))
        found[name] = (last - own) / (before - own)
    return found


def report(found: Mapping[str, Any]) -> list[str]:
    """Medians over seeds of the walks that are over, and whether they are within a tenth of the gain."""
    lines = []
    for arm in dict.fromkeys(name.split(",")[0] for name in found if ", seed " in name):
        runs = [made for name, made in found.items() if name.startswith(f"{arm},")]
        runs = [made for made in runs if len(made["losses"]) > len(made["losses"][-1])]
        if not runs:
            continue
        parts = [lost(made["losses"]) for made in runs]
        shares = {name: statistics.median(one[name] for one in parts) for name in parts[0]}
        last = list(runs[0]["losses"][-1])[-1]
        third = statistics.median(made["losses"][-1][last] for made in runs)
        verdict = "holds" if max(shares.values()) <= ALLOWED else "fails"
        told = ", ".join(f"{name} {100 * share:+.1f} %" for name, share in shares.items())
        line = f"{arm} ({len(runs)} seeds): of the gain is lost: {told}: {verdict}; {last} ends at {third:.3f}"
        rises = [_rise(made["texts"]) for made in runs if made.get("texts", {}).get("after")]
        lines.append(line + (f"; general text {statistics.median(rises):+.3f}" if rises else ""))
    return lines


def _rise(texts: Mapping[str, Mapping[str, float]]) -> float:
    """Mean over kinds of the rise, nats a token."""
    return statistics.mean(texts["after"][name] - texts["before"][name] for name in texts["after"])


if __name__ == "__main__":
    main()
