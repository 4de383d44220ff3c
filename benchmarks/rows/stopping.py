"""How well a few rows choose the filter's strength: by the rise that they show, as shipped, and by what the adapter as trained expects too.

Were the adapter as trained right about its own errors, the loss would rise by K = KL(as trained || filtered) in the mean over labels. K has no noise of
labels. `prior`: the rise is N(K, K^2) before the rows are looked at, and they show it with their error. `labels`: K counts as 100 more label tokens that
show it. In both the rows count alone where they show more than is expected, beyond two standard deviations. `expected`: K alone.

PYTHONPATH=DATA python -m benchmarks.rows.stopping SETTINGS --work FOLDER     # adapters and moments of benchmarks.retention
python -m benchmarks.rows.stopping                                           # what the records say

Every row that an adapter was not trained on is read at every strength of a grid. Then rows are drawn at random, choose a strength by each rule, and
the rise on all rows that were not drawn is the truth.
"""

import argparse
import functools
import itertools
import json
import math
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.retention.settings import EVALUATION, SELECTION, SETTINGS, Setting
from benchmarks.retention.study import ARMS, Study, about
from benchmarks.selection.sweep import tasks
from lora_select.data.labels.tokens import IGNORED, TokenRow, collate
from lora_select.evaluation.model_losses import label_counts
from lora_select.records import PathPoint, write_text
from lora_select.retention import forms, path
from lora_select.retention.bench import filter_updates, scaled
from lora_select.retention.forms import Update

RESULTS = Path(__file__).parent / "results"
FIRST = ("packages",)
"""The adapter that was looked at before the criterion was written."""
STRENGTHS = {
    "filter": (0.03, 0.1, 0.3, 1.0, 3.0),
    "adapted": (0.1, 0.3, 1.0, 3.0),
    "scale": (0.1, 0.3, 1.0),
}
"""`adapted` is the filter with the task's moments through the adapted model."""
DRAWN, DRAWS, MORE, BATCH = (12, 48), 400, 100, 16
RULES = ("seen", "prior", "labels", "expected")
WORTH, TRUST = 100, 2.0
NOTHING = 0.003
"""Stands for the strength where nothing is allowed."""
SHARE = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", choices=[[], *SETTINGS])
    parser.add_argument("--work", type=Path, default=Path("runs/retention"))
    parser.add_argument("--adapted", action="store_true", help="also with the task's moments through the adapted model")
    options = parser.parse_args()
    for name in options.settings:
        file = RESULTS / f"{name}.json"
        if not file.is_file():
            RESULTS.mkdir(exist_ok=True)
            write_text(
                file, json.dumps(measured(SETTINGS[name], options.work, adapted=options.adapted) | about()) + "\n"
            )
        print(name, flush=True)
    if not options.settings:
        print(*report(), sep="\n")


def measured(setting: Setting, work: Path, *, adapted: bool) -> dict[str, Any]:
    """Of every row that was not trained on: label tokens, the loss as trained, and at every strength the loss and the KL, nats summed over the row."""
    import torch

    torch.set_num_threads(1)
    study = Study(setting, work)
    rows = [*study.subject.selection, *study.subject.evaluation, *_others(setting, study)]
    scales = [PathPoint(**point) for point in study.held["arms"]["scale"]["path"]]
    shorter = scaled(study.form.updates, path.shortened(scales))
    forms_of = {f"scale {s}": scaled(study.form.updates, s) for s in STRENGTHS["scale"]}
    arms = {"filter": "filter-mixture"} | ({"adapted": "filter-adapted"} if adapted else {})
    for arm, name in arms.items():
        pairs, layers, _, _ = study._pairs(ARMS[name])
        forms_of |= {f"{arm} {s}": filter_updates(shorter, pairs, layers, s) for s in STRENGTHS[arm]}
        del pairs
    made: dict[str, Any] = {"labels": label_counts(rows), "raw": [0.0] * len(rows)}
    made |= {name: [(0.0, 0.0)] * len(rows) for name in forms_of}
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    for begin in range(0, len(order), BATCH):
        chosen = order[begin : begin + BATCH]
        batch = collate([rows[index] for index in chosen], study.pad_id)
        losses, before = _read(study.model, study.form.updates, batch, None)
        _note(made["raw"], chosen, losses)
        for name, updates in forms_of.items():
            losses, kl = _read(study.model, updates, batch, before)
            _note(made[name], chosen, zip(losses, kl, strict=True))
    return made


def _read(model: Any, updates: Mapping[str, Update], batch: Mapping[str, Any], before: Any) -> tuple[list[float], Any]:
    """Summed losses of the rows; the log probabilities at all places of labels, or the summed KL from those that are given."""
    import torch

    targets = batch["labels"][:, 1:]
    places = targets.ne(IGNORED).any(0)
    wanted, kept = targets.ne(IGNORED)[:, places], targets[:, places].clamp(min=0)
    with torch.inference_mode(), forms.applied(model, updates):
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        logs = model(**inputs, use_cache=False).logits[:, :-1][:, places].float().log_softmax(-1)
    losses = -(logs.gather(-1, kept[..., None])[..., 0] * wanted).sum(1)
    if before is None:
        return losses.tolist(), logs
    return losses.tolist(), ((before.exp() * (before - logs)).sum(-1) * wanted).sum(1).tolist()


def _note(held: list[Any], places: Sequence[int], values: Iterable[Any]) -> None:
    for place, value in zip(places, values, strict=True):
        held[place] = [round(one, 5) for one in value] if isinstance(value, tuple) else round(value, 5)


def _others(setting: Setting, study: Study) -> Sequence[TokenRow]:
    """Up to so many more rows of the task as nobody has seen."""
    task = (tasks.TASKS | tasks.LATER)[setting.task]
    make = functools.partial(tasks.chat_row, task, study.subject.tokenizer)
    known = {row.row_id for part in ("train", "selection", "evaluation") for row in getattr(study.subject, part)}
    for more in (MORE, MORE // 2, 0):
        try:
            found = tasks.rows(task, make, setting.rows + SELECTION + more, EVALUATION)
        except ValueError:
            continue
        return [row for row in (*found.train, *found.held_out) if row.row_id not in known][:more]
    return []


@final
@dataclass(frozen=True)
class Choice:
    """What a draw of rows chose: the strength (0 for nothing), and the rise that it costs on all other rows as a share of their loss."""

    strength: float
    cost: float


def choices(held: Mapping[str, Any], arm: str, rule: str, count: int) -> list[Choice]:
    """One for each of the draws; the same draws for every rule."""
    rng = random.Random(0)
    order = list(range(len(held["labels"])))
    made = []
    for _ in range(DRAWS):
        rng.shuffle(order)
        chosen, rest = order[:count], order[count:]
        best = path.chosen(_path(held, arm, chosen, rule))
        cost = 0.0
        if best is not None:
            rise = math.fsum(held[f"{arm} {best.strength}"][row][0] - held["raw"][row] for row in rest)
            cost = rise / math.fsum(held["raw"][row] for row in rest)
        made.append(Choice(best.strength if best is not None else 0.0, cost))
    return made


def _path(held: Mapping[str, Any], arm: str, chosen: Sequence[int], rule: str) -> list[PathPoint]:
    """The grid of strengths as a rule sees it on the rows that choose."""
    raw, labels = [held["raw"][row] for row in chosen], [held["labels"][row] for row in chosen]
    limit = SHARE * math.fsum(raw) / sum(labels)

    def shown(name: str) -> tuple[float, float, float]:
        """The paired rise, its error, and K."""
        found = [held[name][row] for row in chosen]
        kl = math.fsum(one for _, one in found) / sum(labels)
        return *path.paired(raw, [loss for loss, _ in found], labels), max(kl, 1e-9)

    def trusted(kl: float) -> float:
        return kl if rule == "prior" else math.sqrt(2 * kl / WORTH)

    every = [shown(f"{of} {strength}") for of in (arm, "scale") for strength in STRENGTHS[of]]
    alone = rule == "seen" or any(r - kl > TRUST * math.hypot(e, trusted(kl)) for r, e, kl in every)
    points = []
    for strength, (rise, error, kl) in zip(STRENGTHS[arm], every, strict=False):
        if rule == "expected":
            rise, error = kl, 0.0
        elif not alone and error > 0:
            rise, error = both(rise, error, kl, trusted(kl))
        points.append(PathPoint(strength, 0.0, rise, error, limit, rise + error <= limit))
    return points


def both(rise: float, error: float, expected: float, spread: float) -> tuple[float, float]:
    """Mean and standard deviation of a normal rise around `expected`, of a standard deviation `spread`, that was seen once with a normal error."""
    trust = error**2 / (error**2 + spread**2)
    return trust * expected + (1 - trust) * rise, error * spread / math.hypot(error, spread)


def report() -> Iterator[str]:
    """A line for each number of rows and rule: how often the truth is beyond 1 % and 2 % of the loss, and the mean of the log strength."""
    every = {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in sorted(RESULTS.glob("*.json"))}
    for words, names in (("first", FIRST), ("others", tuple(name for name in every if name not in FIRST))):
        for arm in STRENGTHS:
            known = [every[name] for name in names if f"{arm} 1.0" in every.get(name, ())]
            if not known:
                continue
            yield f"{words}: {arm} of {len(known)} adapters"
            for count in DRAWN:
                for rule in RULES:
                    found = [one for held in known for one in choices(held, arm, rule, count)]
                    beyond, twice = (statistics.mean(one.cost > share for one in found) for share in (SHARE, 2 * SHARE))
                    log = statistics.mean(math.log10(one.strength or NOTHING) for one in found)
                    some = statistics.mean(one.strength > 0 for one in found)
                    cost = statistics.mean(one.cost for one in found)
                    yield (
                        f"  {count} rows, {rule}: something is allowed {some:.2f}, strength {10**log:.3f}, beyond 1 % {beyond:.3f}, "
                        f"2 % {twice:.3f}, mean cost {100 * cost:+.2f} %"
                    )
    for name, held in every.items():
        told = [f"{name}: {len(held['labels'])} rows"]
        for arm, count, rule in itertools.product(("filter", "adapted"), DRAWN, RULES[:3]):
            if f"{arm} 1.0" in held:
                found = choices(held, arm, rule, count)
                log = statistics.mean(math.log10(one.strength or NOTHING) for one in found)
                beyond = statistics.mean(one.cost > SHARE for one in found)
                told.append(f"{arm}, {count} {rule} {10**log:.3f} beyond {beyond:.2f}")
        yield "; ".join(told)


if __name__ == "__main__":
    main()
