"""What several commands share: model and data, options made from the config, `--json`."""

import argparse
import dataclasses
import difflib
import json
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.errors import InputError

if TYPE_CHECKING:
    from lora_select.config import RunConfig
    from lora_select.config.words import Setting
    from lora_select.pipeline.stage import Observer
    from lora_select.records import Constraints

OVERRIDE = re.compile(r"(--)?([a-z_]+(\.[a-z_]+)+|name|seed|runs_dir)=")
CONFIGS = (".yaml", ".yml", ".json")


class Renamed(argparse.Action):
    """An option of before: refused with the one of today."""

    def __call__(self, _parser: Any, _namespace: Any, _values: Any, option: str | None = None) -> None:
        """Name the new spelling.

        Raises:
            InputError: always.
        """
        raise InputError(f"{option} is called {self.const}")


def renamed(command: argparse.ArgumentParser, spellings: dict[str, str]) -> None:
    """Refuse old spellings of options."""
    for old, new in spellings.items():
        command.add_argument(old, action=Renamed, nargs="*", const=new, help=argparse.SUPPRESS)


def add_inputs(command: argparse.ArgumentParser, sections: Sequence[str]) -> None:
    """`CONFIG` or `MODEL DATA`, any `section.field=value`, and an option for each field of these sections."""
    from lora_select.config.words import settings

    command.add_argument(
        "inputs",
        nargs="*",
        metavar="CONFIG | MODEL DATA | section.field=value",
        help="a YAML config; or a model (hub id, folder, .gguf file, sample:NAME) and data (file, folder, hub id, sample:NAME)",
    )
    command.add_argument("--model", help="the model, where it is not the first word")
    command.add_argument("--data", help="the data, where it is not the second word")
    wanted = [one for one in settings() if len(one.path) == 1 or one.path[0] in sections]
    for section in dict.fromkeys(one.path[0] if len(one.path) > 1 else "" for one in wanted):
        group = command.add_argument_group(f"`{section}` of a config" if section else "of the run")
        for one in wanted:
            if (one.path[0] if len(one.path) > 1 else "") == section:
                _add(group, one)
    renamed(
        command,
        {"--base": "--quantize", "--batch": "--batch-size", "--budget": "--race-budget", "--emit": "--trainers"},
    )


def take(parsed: argparse.Namespace, rest: Sequence[str]) -> None:
    """Words that stand after an option, which argparse leaves over, belong to the inputs.

    Raises:
        InputError: an option, or a word, that the command does not know.
    """
    from lora_select.config.words import settings

    inputs = getattr(parsed, "inputs", None)
    for word in rest:
        if inputs is not None and (not word.startswith("-") or OVERRIDE.match(word)):
            inputs.append(word)
            continue
        known = [f"--{one.word.replace('_', '-')}" for one in settings() if hasattr(parsed, one.word)]
        near = difflib.get_close_matches(word.partition("=")[0], known, n=1, cutoff=0.5)
        raise InputError(f"{word} is unknown here" + (f"; did you mean {near[0]}?" if near else "; see --help"))


def add_constraints(command: argparse.ArgumentParser) -> None:
    """An option for each constraint on an adapter, as a run's config has it."""
    group = command.add_argument_group("constraints, as in a config")
    for one in _constraints():
        _add(group, one)
    renamed(command, {"--base": "--quantize"})


def constraints_of(parsed: argparse.Namespace) -> "Constraints":
    """The constraints that a command line means.

    Raises:
        InputError: one is out of range.
    """
    from lora_select.config import words

    values = {one.word: _read(getattr(parsed, one.word)) for one in _constraints()}
    return words.of("none", "none", {word: value for word, value in values.items() if value is not None}).constraints


def _constraints() -> list["Setting"]:
    """The fields of the config that say what an adapter must live with."""
    from lora_select.config.words import settings
    from lora_select.records import Constraints

    names = {field.name for field in dataclasses.fields(Constraints)} | {"quantize"}
    return [one for one in settings() if one.word in names and one.annotation is not dict[str, bool]]


def add_json(command: argparse.ArgumentParser) -> None:
    """`--json`: for machines."""
    command.add_argument("--json", action="store_true", help="print one JSON value instead of text")


def print_json(value: Any) -> None:
    """One JSON value on the standard output; NaN and infinity are no JSON."""
    print(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False))


def config_of(parsed: argparse.Namespace, **fixed: Any) -> "RunConfig":
    """The config that a command line means; `fixed` are keywords that hold unless the command line says otherwise.

    Raises:
        InputError: too few or too many words, or a setting that is unknown or out of range.
    """
    from lora_select import config
    from lora_select.config import words as known

    overrides = [word for word in parsed.inputs if OVERRIDE.match(word)]
    words = [word for word in parsed.inputs if not OVERRIDE.match(word)]
    given = {one.word: getattr(parsed, one.word, None) for one in known.settings()}
    given = {word: value for word, value in given.items() if value is not None}
    named = [value for value in (parsed.model, parsed.data) if value is not None]
    if len(words) == 1 and not named and Path(words[0]).suffix in CONFIGS:
        options = [f"{known.setting(word).place}={_yaml(value)}" for word, value in (fixed | given).items()]
        return config.load(words[0], [*options, *overrides])
    model = parsed.model or (words.pop(0) if words else None)
    data = parsed.data or (words.pop(0) if words else None)
    if odd := [word for word in words if re.match(r"^-*\w+=", word)]:
        name, _, value = odd[0].lstrip("-").partition("=")
        raise InputError(
            f"{odd[0]!r} is no setting: a setting is section.field=value, such as training.epochs=2, and an option is "
            f"--{name} {value}"
        )
    if model is None or data is None or words:
        raise InputError(
            "name a model and data, such as `HuggingFaceTB/SmolLM2-135M-Instruct rows.jsonl`, or one config, such as `run.yaml`"
            + (f"; left over: {' '.join(words)}" if words else "")
        )
    read = {word: _read(value) for word, value in given.items()}
    return known.of(model, data, fixed | read, overrides)


def _add(group: Any, one: "Setting") -> None:
    option = f"--{one.word.replace('_', '-')}"
    default = "" if one.default is None or one.default == {} else f"default: {_shown(one.default)}"
    if one.annotation is bool:
        group.add_argument(option, dest=one.word, action=argparse.BooleanOptionalAction, help=default)
    elif typing.get_origin(one.annotation) is tuple:
        choices = typing.get_args(typing.get_args(one.annotation)[0])
        group.add_argument(
            option, dest=one.word, nargs="+", metavar="NAME", help=f"{', '.join(map(str, choices))} ({default})"
        )
    else:
        choices = "|".join(str(choice) for choice in _choices(one.annotation))
        group.add_argument(option, dest=one.word, metavar=choices or "VALUE", help=default)


def _choices(annotation: Any) -> list[Any]:
    if typing.get_origin(annotation) is typing.Literal:
        return list(typing.get_args(annotation))
    return [choice for part in typing.get_args(annotation) for choice in _choices(part)]


def _shown(default: Any) -> str:
    text = " ".join(default) if isinstance(default, tuple) else str(default)
    return text.replace("%", "%%")


def _read(value: Any) -> Any:
    """Option texts are YAML values, as in a config."""
    import yaml

    if isinstance(value, str):
        try:
            return yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise InputError(f"{value!r} is not a value") from error
    return list(dict.fromkeys(value)) if isinstance(value, list) else value


def _yaml(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def terminal(parsed: argparse.Namespace) -> "Observer":
    """Who shows the run on the terminal; with `--json` on the standard error, so that the output stays one value."""
    from lora_select import progress
    from lora_select.pipeline.observers import Terminal

    if getattr(parsed, "json", False):
        return Terminal(lambda line: print(line, file=sys.stderr, flush=True), progress.silence)
    return Terminal()


def plain(record: Any) -> Any:
    """A record as JSON values."""
    from lora_select.records import to_json

    return json.loads(to_json(record))
