"""Writes docs/configuration.md from the code: `python docs/make_configuration.py`."""

import inspect
import textwrap
import types
import typing
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from lora_select import config
from lora_select.config import words

HEAD = """# Configuration

Every setting of a run, made from `lora_select/config/` by `python docs/make_configuration.py`.

The same field has three spellings:

| where | how |
|---|---|
| a YAML file | `training: {epochs: 2}` |
| any command | `--epochs 2`, or `training.epochs=2` |
| Python | `ls.finetune(model, dataset, epochs=2)` |

A wrong name or value is refused when the settings are read, with the nearest name that exists."""


def page() -> str:
    """The whole page."""
    named = {one.path: one.word for one in words.settings()}
    top, parts = [], []
    for name, field in config.RunConfig.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            rows = [_row((name, leaf), one, named) for leaf, one in kind.model_fields.items()]
            parts.append(f"## {name}\n\n{_text(kind)}\n\n{_table(rows)}")
        else:
            top.append(_row((name,), field, named))
    return "\n\n".join([HEAD, f"## At the top\n\n{_text(config.RunConfig)}\n\n{_table(top)}", *parts]) + "\n"


def _text(kind: type[BaseModel]) -> str:
    blocks = inspect.cleandoc(kind.__doc__ or "").split("\n\n")
    return "\n\n".join(textwrap.fill(block, 120, break_on_hyphens=False) for block in blocks)


def _table(rows: list[tuple[str, ...]]) -> str:
    head = ("field", "keyword", "values", "default")
    return "\n".join(f"| {' | '.join(row)} |" for row in (head, ("---",) * 4, *rows))


def _row(path: tuple[str, ...], field: FieldInfo, words: dict[tuple[str, ...], str]) -> tuple[str, ...]:
    needed = "the dataset's name" if path == ("name",) else "needed"
    default = needed if field.is_required() else f"`{_plain(field.get_default(call_default_factory=True))}`"
    word = words.get(path, "the argument" if path[-1] == "source" else path[-1])
    return f"`{'.'.join(path)}`", f"`{word}`" if path in words else word, _values(field), default


def _plain(value: Any) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _values(field: FieldInfo) -> str:
    limits = [_limit(rule) for rule in field.metadata]
    return ", ".join([_kind(field.annotation), *filter(None, limits)])


def _limit(rule: Any) -> str:
    signs = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
    return " ".join(f"{word} {getattr(rule, name):g}" for name, word in signs.items() if hasattr(rule, name))


def _kind(annotation: Any) -> str:
    origin = typing.get_origin(annotation)
    if origin is Literal:
        return ", ".join(f"`{_plain(value)}`" for value in typing.get_args(annotation))
    if origin in (typing.Union, types.UnionType):
        return ", ".join(dict.fromkeys(_kind(part) for part in typing.get_args(annotation)))
    if origin is typing.Annotated:
        return _kind(typing.get_args(annotation)[0])
    if origin in (tuple, list):
        return f"a list of {_kind(typing.get_args(annotation)[0])}"
    if origin is dict:
        key, value = typing.get_args(annotation)
        return f"a mapping of {_kind(key)} to {_kind(value)}"
    names = {type(None): "`null`", str: "text", int: "whole number", float: "number", bool: "`true`, `false`"}
    return names.get(annotation, getattr(annotation, "__name__", "any value"))


if __name__ == "__main__":
    Path(__file__).with_name("configuration.md").write_text(page(), encoding="utf-8")
