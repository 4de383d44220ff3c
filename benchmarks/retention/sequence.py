"""Three tasks one after the other on one model, each update merged before the next is trained: what is left of the first two; resumable.

PYTHONPATH=DATA python -m benchmarks.retention.sequence

MiniLM as a classifier by the nearest label name (`benchmarks.selection.sweep.encoder`). Arms: `raw`; `filter`, by the sums of the earlier tasks' second moments
(no rows), at the strength of the product's rule; `filter-many`, which chooses on ten times the rows; `replay` of 5 % of the earlier tasks' rows.
"""

import functools
import json
import math
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import nn

from benchmarks.retention.settings import Setting
from benchmarks.retention.study import OTHER, about
from benchmarks.retention.train import plan_of
from benchmarks.selection.sweep import encoder, tasks
from lora_select.data.labels.tokens import TokenRow
from lora_select.evaluation.model_losses import label_counts, row_losses
from lora_select.records import write_text
from lora_select.retention import filter as filtering
from lora_select.retention import form_losses, forms, path
from lora_select.retention.bench import filter_updates
from lora_select.retention.filter import Pair
from lora_select.retention.forms import Update
from lora_select.retention.moments import Moments, stream
from lora_select.training import trials
from lora_select.variants import named

FILE = OTHER / "sequence.json"
ORDER = ("section", "newsgroup", "news")
MODULES = ("query", "key", "value", "dense")
RATE, ROWS, SELECTION, MANY, JUDGING = 1e-3, 192, 48, 480, 256
REPLAY = 0.05
ARMS = ("raw", "filter", "replay", "filter-many")
ALLOWED = 0.1
"""Of the gain that a task had after its own training: what of it may be lost."""


@final
@dataclass(frozen=True)
class Task:
    """Rows of one task: to train on, to choose the strength with, to judge."""

    train: tuple[TokenRow, ...]
    selection: tuple[TokenRow, ...]
    judging: tuple[TokenRow, ...]


@final
class Texts(nn.Module):
    """The encoder on texts alone: for second moments, without the class that ends a row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool = False) -> Any:
        del use_cache
        return self.inner.embed(input_ids, attention_mask)


def main() -> None:
    torch.set_num_threads(1)
    found: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {}
    for seed in (0, 1, 2):
        for arm in ARMS:
            name = f"{arm}, seed {seed}"
            if name not in found:
                began = time.process_time()
                found[name] = run(arm, seed) | {"processor_seconds": round(time.process_time() - began, 1)}
                OTHER.mkdir(parents=True, exist_ok=True)
                write_text(FILE, json.dumps(found | about(), indent=1) + "\n")
                print(name, found[name], flush=True)
    print(*report(found), sep="\n")


@functools.cache
def rows_of(name: str) -> Task:
    """The same for every arm and seed."""
    most = ROWS + MANY
    _, _, _, rows, _ = encoder.loaded(tasks.TASKS[name], most)
    return Task(rows.train[:ROWS], rows.train[ROWS:], rows.held_out[:JUDGING])


def run(arm: str, seed: int) -> dict[str, Any]:
    """Loss of every task in nats a row before the first training and after each."""
    model, _, pad_id, _, _ = encoder.loaded(tasks.TASKS[ORDER[0]], ROWS)
    modules = {
        name: module for name, module in forms.linear_modules(model).items() if name.rpartition(".")[2] in MODULES
    }
    after = [_judged(model, pad_id)]
    strengths: list[float | None] = []
    earlier: Moments | None = None
    replay: list[TokenRow] = []
    for name in ORDER:
        task = rows_of(name)
        updates = _trained(model, [*task.train, *replay], pad_id, seed)
        if arm.startswith("filter") and earlier is not None:
            mine = _moments(model, modules, task.train, pad_id)
            selection = task.selection if arm == "filter-many" else task.selection[:SELECTION]
            updates, strength = _filtered(model, updates, mine, earlier, selection, pad_id)
            strengths.append(strength)
        _merge(modules, updates)
        if arm.startswith("filter") and name != ORDER[-1]:
            kept = _moments(model, modules, task.train, pad_id)
            earlier = kept if earlier is None else earlier.merged(kept)
        replay += task.train[: round(REPLAY * ROWS)] if arm == "replay" else []
        after.append(_judged(model, pad_id))
    return {"losses": after, "strengths": strengths}


def _judged(model: Any, pad_id: int) -> dict[str, float]:
    return {
        name: round(statistics.mean(row_losses(model, rows_of(name).judging, pad_id, 32, "cpu")), 4) for name in ORDER
    }


def _trained(model: Any, rows: Sequence[TokenRow], pad_id: int, seed: int) -> dict[str, Update]:
    """One epoch of LoRA r 16; the base is left as it was."""
    steps = math.ceil(len(rows) / 8)
    plan = plan_of(Setting("sequence", "", RATE, rows=len(rows), steps=steps, seed=seed))
    spec = named("lora", 16).spec(
        targets="all-linear", target_modules=MODULES, learning_rate=RATE,
        placed={"target_modules": list(MODULES), "task_type": "CAUSAL_LM"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        with trials.adapted(model, spec, plan) as network:
            trials.train(network, spec, plan, rows, pad_id)
            network.save_pretrained(folder)
        return dict(forms.read(Path(folder), model, load_base=lambda: model).updates)


def _moments(model: Any, modules: Mapping[str, nn.Module], rows: Sequence[TokenRow], pad_id: int) -> Moments:
    texts = [TokenRow(row.row_id, row.input_ids[:-1], row.label_mask[:-1]) for row in rows]
    return stream(Texts(model).eval(), modules, texts, pad_id)


def _filtered(
    model: Any,
    updates: dict[str, Update],
    task: Moments,
    earlier: Moments,
    selection: Sequence[TokenRow],
    pad_id: int,
) -> tuple[dict[str, Update], float | None]:
    pairs: dict[str, Pair]
    pairs, _, _ = filtering.pairs(task, [earlier])
    layers: dict[str, list[str]] = {}
    for name, owner in task.owner.items():
        if owner in pairs and name in updates:
            layers.setdefault(owner, []).append(name)
    raw = path.Losses(form_losses.losses(model, updates, selection, pad_id), label_counts(selection))

    def at(strength: float) -> Sequence[float]:
        return form_losses.losses(model, filter_updates(updates, pairs, layers, strength), selection, pad_id)

    best = path.chosen(path.morozov(raw, at, path.parse_tolerance(None)))
    if best is None:
        return updates, None
    return filter_updates(updates, pairs, layers, best.strength), best.strength


def _merge(modules: Mapping[str, nn.Module], updates: Mapping[str, Update]) -> None:
    with torch.no_grad():
        for name, update in updates.items():
            weight: Any = modules[name].weight
            weight += update.b @ update.a if update.b is not None else update.a


def lost(losses: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Of the first two tasks' own gain, the share that is gone after the third."""
    found = {}
    for index, name in enumerate(ORDER[:2]):
        before, own, last = (losses[at][name] for at in (index, index + 1, len(ORDER)))
        found[name] = (last - own) / (before - own)
    return found


def report(found: Mapping[str, Any]) -> list[str]:
    """Medians over seeds, and whether they are within a tenth of the gain."""
    lines = []
    for arm in ARMS:
        runs = [made["losses"] for name, made in found.items() if name.startswith(f"{arm},")]
        if not runs:
            continue
        shares = {name: statistics.median(lost(one)[name] for one in runs) for name in ORDER[:2]}
        third = statistics.median(one[-1][ORDER[2]] for one in runs)
        verdict = "holds" if max(shares.values()) <= ALLOWED else "fails"
        told = ", ".join(f"{name} {100 * share:+.0f} %" for name, share in shares.items())
        lines.append(
            f"{arm} ({len(runs)} seeds): of the gain is lost: {told}: {verdict}; {ORDER[2]} ends at {third:.3f}"
        )
    return lines


if __name__ == "__main__":
    main()
