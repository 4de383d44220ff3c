"""Keywords of the Python API and options of the commands, made from the fields of :class:`lora_select.config.RunConfig`."""

import difflib
import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from pydantic import BaseModel

from lora_select.config import RENAMED, RunConfig, apply, parse
from lora_select.errors import InputError


@final
@dataclass(frozen=True)
class Setting:
    """One field of the config.

    `word` is its keyword in the Python API, and its option with `-` for `_`: the field's own name, after that of its section where two
    sections have one (`dataset_revision`) or where it says nothing alone (`tracking_uri`).
    """

    word: str
    path: tuple[str, ...]
    annotation: Any
    default: Any

    @property
    def place(self) -> str:
        """`section.field`."""
        return ".".join(self.path)


VAGUE = {"uri", "budget"}
"""Names of fields that say nothing without their section."""


@functools.cache
def settings() -> tuple[Setting, ...]:
    """Every field but the two sources, which are arguments of their own."""
    found = []
    for name, field in RunConfig.model_fields.items():
        inner: Any = field.annotation
        if not _is_section(inner):
            found.append(((name,), field))
        else:
            found += [((name, leaf), one) for leaf, one in inner.model_fields.items() if leaf != "source"]
    counts = Counter(path[-1] for path, _ in found)
    return tuple(
        Setting(
            "_".join(path) if counts[path[-1]] > 1 or path[-1] in VAGUE else path[-1],
            path,
            one.annotation,
            one.get_default(call_default_factory=True),
        )
        for path, one in found
    )


def of(model: str, dataset: str, values: Mapping[str, Any], overrides: Sequence[str] = ()) -> RunConfig:
    """A config from the two sources, keywords (see :class:`Setting`) and `section.field=value`.

    Raises:
        InputError: an unknown keyword, with the nearest that exists; or a field that is out of range.
    """
    made: dict[str, Any] = {"base_model": {"source": model}, "dataset": {"source": dataset}}
    for word, value in values.items():
        *sections, leaf = setting(word).path
        target = functools.reduce(lambda section, name: section.setdefault(name, {}), sections, made)
        target[leaf] = value
    for override in overrides:
        apply(made, override)
    return parse(made, place="settings")


def setting(word: str) -> Setting:
    """The field that a keyword means.

    Raises:
        InputError: there is none; names the nearest.
    """
    known = {one.word: one for one in settings()}
    if word in known:
        return known[word]
    if word in RENAMED:
        raise InputError(f"`{word}` is called `{RENAMED[word]}`")
    doubles = [one.word for one in settings() if one.path[-1] == word]
    if doubles:
        raise InputError(f"`{word}` may be one of two fields; say {' or '.join(f'`{name}`' for name in doubles)}")
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    raise InputError(
        f"`{word}` is no setting" + (f"; did you mean `{near[0]}`?" if near else f"; settings: {', '.join(known)}")
    )


def _is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, BaseModel)
