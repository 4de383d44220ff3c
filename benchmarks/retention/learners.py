"""What is trained task after task: MiniLM as a classifier by the nearest label name, and SmolLM2 as a language model."""

import dataclasses
import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, final

from torch import nn

from benchmarks.models import gguf
from benchmarks.retention.kinds import KINDS, kinds
from benchmarks.retention.settings import ATTENTION, EVALUATION, FEED_FORWARD, Setting
from benchmarks.retention.train import plan_of
from benchmarks.selection.sweep import encoder, tasks
from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.evaluation.model_losses import label_counts, row_losses
from lora_select.records import UnitLosses
from lora_select.retention import filter as filtering
from lora_select.retention import form_losses, forms, path
from lora_select.retention.bench import Bench, filter_updates, moved_of_earlier, until
from lora_select.retention.decide import FILTER, RAW, decide
from lora_select.retention.forms import Form, Update
from lora_select.retention.moments import Moments, stream
from lora_select.retention.references import PROSE, ReferenceSet
from lora_select.retention.settings import RetentionSettings
from lora_select.training import trials
from lora_select.variants import named

ROWS, BATCH = 192, 8
DECIDING, JUDGE = 10, 5
"""Pieces of prose that the decision reads, and pieces of each kind of text that judge at the end."""


@final
@dataclass(frozen=True)
class Task:
    """Rows of one task: to train on, to choose the strength with, to judge."""

    train: tuple[TokenRow, ...]
    selection: tuple[TokenRow, ...]
    judging: tuple[TokenRow, ...]


@final
@dataclass(frozen=True)
class Kept:
    """What is merged after a training: the updates, what chose them, and the task's sums through the base before the merge."""

    updates: Mapping[str, Update]
    chosen: Mapping[str, Any]
    sums: Moments


class Learner(Protocol):
    """A model and its tasks, in the order in which they are learnt. `few` and `many` rows choose."""

    name: str
    order: tuple[str, ...]
    arms: tuple[str, ...]
    few: int
    many: int
    model: Any
    modules: Mapping[str, nn.Module]

    def task(self, name: str) -> Task:
        """The same for every arm and seed."""
        ...

    def train(self, rows: Sequence[TokenRow], seed: int, folder: Path) -> Form:
        """One epoch of LoRA r 16, once: a folder that holds it is read. The model is left as it was."""
        ...

    def keep(self, form: Form, task: Task, earlier: Moments | None, arm: str, selection: int) -> Kept:
        """What an arm of the filter makes of the training."""
        ...

    def loss(self, name: str) -> float:
        """On the rows of a task that judge."""
        ...

    def texts(self) -> dict[str, float]:
        """Losses on text that is no task's."""
        ...


@final
class Texts(nn.Module):
    """The encoder on texts alone: for second moments, without the class that ends a row."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.inner = model

    def forward(self, input_ids: Any, attention_mask: Any, use_cache: bool = False) -> Any:
        del use_cache
        return self.inner.embed(input_ids, attention_mask)


def without_class(rows: Sequence[TokenRow]) -> list[TokenRow]:
    """The texts of rows that end with their class."""
    return [TokenRow(row.row_id, row.input_ids[:-1], row.label_mask[:-1]) for row in rows]


@final
class Encoder:
    """MiniLM. Its filter has the earlier tasks' moments alone: there is no general text that a classifier could forget."""

    name: str = "minilm"
    order: tuple[str, ...] = ("section", "newsgroup", "news")
    arms: tuple[str, ...] = ("raw", "filter", "replay", "filter-many")
    few: int = 48
    many: int = 480
    rate, judging = 1e-3, 256
    targets: tuple[str, ...] = ("query", "key", "value", "dense")

    def __init__(self) -> None:
        self.model: Any
        self.model, _, self.pad_id, _, _ = encoder.loaded(tasks.TASKS[self.order[0]], ROWS)
        self.modules: Mapping[str, nn.Module] = {
            name: module
            for name, module in forms.linear_modules(self.model).items()
            if name.rpartition(".")[2] in self.targets
        }

    def task(self, name: str) -> Task:
        return _encoder_task(name)

    def train(self, rows: Sequence[TokenRow], seed: int, folder: Path) -> Form:
        return _trained(self.model, self.targets, self.rate, rows, seed, self.pad_id, folder)

    def keep(self, form: Form, task: Task, earlier: Moments | None, arm: str, selection: int) -> Kept:
        del arm
        texts = without_class(task.train)
        sums = stream(Texts(self.model).eval(), self.modules, texts, self.pad_id)
        if earlier is None:
            return Kept(form.updates, {}, sums)
        pairs, _, _ = filtering.pairs(sums, [earlier])
        layers: dict[str, list[str]] = {}
        for name, owner in sums.owner.items():
            if owner in pairs and name in form.updates:
                layers.setdefault(owner, []).append(name)
        rows = task.selection[:selection]
        raw = path.Losses(form_losses.losses(self.model, form.updates, rows, self.pad_id), label_counts(rows))

        def at(strength: float) -> Sequence[float]:
            made = filter_updates(form.updates, pairs, layers, strength)
            return form_losses.losses(self.model, made, rows, self.pad_id)

        best = path.chosen(path.morozov(raw, at, path.parse_tolerance(None)))
        if best is None:
            return Kept(form.updates, {"strength": None}, sums)
        return Kept(filter_updates(form.updates, pairs, layers, best.strength), {"strength": best.strength}, sums)

    def loss(self, name: str) -> float:
        return _mean(self.model, self.task(name).judging, self.pad_id)

    def texts(self) -> dict[str, float]:
        return {}


@final
class Language:
    """SmolLM2-135M. Its filter is the product's: prose and the earlier tasks' moments are references, and prose decides."""

    name: str = "smollm2-135m"
    order: tuple[str, ...] = ("packages", "spelling", "formula")
    arms: tuple[str, ...] = ("raw", "filter", "replay", "filter-many", "filter-earlier", "filter-prose-decides")
    few: int = 48
    many: int = 192
    rate = 2e-3
    targets: tuple[str, ...] = (*ATTENTION, *FEED_FORWARD)

    def __init__(self) -> None:
        file = gguf(self.name)
        if file is None:
            raise ValueError(f"model {self.name} is not installed; benchmarks/models.py names its packages")
        source = models.resolve(str(file))
        self.tokenizer = models.load_tokenizer(source.path)
        self.model: Any = models.load_model(source.path)
        self.pad_id = models.pad_id(self.tokenizer)
        modules = forms.linear_modules(self.model)
        chosen = {name: one for name, one in modules.items() if name.rpartition(".")[2] in self.targets}
        self.modules: Mapping[str, nn.Module] = chosen

    @functools.cached_property
    def kinds(self) -> dict[str, Any]:
        return kinds(self.tokenizer, 60)

    def task(self, name: str) -> Task:
        return _language_task(self.tokenizer, name, ROWS + self.many)

    def train(self, rows: Sequence[TokenRow], seed: int, folder: Path) -> Form:
        return _trained(self.model, self.targets, self.rate, rows, seed, self.pad_id, folder)

    def keep(self, form: Form, task: Task, earlier: Moments | None, arm: str, selection: int) -> Kept:
        trained = sum(len(row.input_ids) for row in task.train)
        settings = RetentionSettings().beside(trained)
        bench = Bench(self.model, form, self.pad_id, settings, lambda *_: None)
        given = [] if earlier is None else [earlier]
        prose = self.kinds["documentation"].give
        give = tuple(until(prose[DECIDING:], settings.reference_tokens))
        sets = [] if arm == "filter-earlier" else [ReferenceSet(PROSE, PROSE, give, prose[:DECIDING], ())]
        pairs, layers, _, sums = bench.moments(task.train, sets, given)
        if not sets and not given:
            return Kept(form.updates, {}, sums)
        rows = task.selection[:selection]
        evidence, arms, _ = bench.search(pairs, layers, {}, rows, path.parse_tolerance(settings.tolerance))
        if not sets:
            choice = prose_alone = FILTER if FILTER in arms else RAW
        else:
            read = bench.judge(arms, sets[0].deciding, "decide", PROSE, divergence=False)
            known = {PROSE: UnitLosses(read.labels, read.base, read.arms)}
            evidence = dataclasses.replace(evidence, references=known, earlier=moved_of_earlier(arms, given))
            prose_alone = decide(dataclasses.replace(evidence, earlier=None)).choice
            choice = prose_alone if arm == "filter-prose-decides" else decide(evidence).choice
        point = path.chosen(evidence.filter_path)
        chosen = {
            "choice": choice,
            "prose_alone": prose_alone,
            "earlier": evidence.earlier,
            "strength": None if point is None else point.strength,
            "shortened": evidence.shortened,
            "filter_path": [dataclasses.asdict(one) for one in evidence.filter_path],
        }
        return Kept(arms[RAW if choice == "none" else choice], chosen, sums)

    def loss(self, name: str) -> float:
        return _mean(self.model, self.task(name).judging, self.pad_id)

    def texts(self) -> dict[str, float]:
        return {name: _mean(self.model, self.kinds[name].judge[:JUDGE], self.pad_id) for name in KINDS}


LEARNERS = {one.name: one for one in (Encoder, Language)}


@functools.cache
def _encoder_task(name: str) -> Task:
    _, _, _, rows, _ = encoder.loaded(tasks.TASKS[name], ROWS + Encoder.many)
    return Task(rows.train[:ROWS], rows.train[ROWS:], rows.held_out[: Encoder.judging])


@functools.cache
def _language_task(tokenizer: Any, name: str, count: int) -> Task:
    task = tasks.find(name)
    rows = tasks.rows(task, functools.partial(tasks.chat_row, task, tokenizer), count, EVALUATION)
    return Task(rows.train[:ROWS], rows.train[ROWS:], rows.held_out)


def _trained(
    model: Any, targets: tuple[str, ...], rate: float, rows: Sequence[TokenRow], seed: int, pad_id: int, folder: Path
) -> Form:
    if not (folder / "training.json").is_file():
        steps = math.ceil(len(rows) / BATCH)
        plan = plan_of(Setting("sequence", "", rate, rows=len(rows), steps=steps, seed=seed))
        spec = named("lora", 16).spec(
            targets="all-linear", target_modules=targets, learning_rate=rate,
            placed={"target_modules": list(targets), "task_type": "CAUSAL_LM"},
        )  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        with trials.adapted(model, spec, plan) as network:
            losses = trials.train(network, spec, plan, rows, pad_id)
            network.save_pretrained(str(folder))
        (folder / "training.json").write_text(json.dumps({"losses": losses}))
    return forms.read(folder, model, load_base=lambda: model)


def _mean(model: Any, rows: Sequence[TokenRow], pad_id: int) -> float:
    """Nats a label token."""
    return round(math.fsum(row_losses(model, rows, pad_id, 16, "cpu")) / sum(label_counts(rows)), 4)
