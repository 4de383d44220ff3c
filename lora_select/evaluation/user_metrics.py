"""Metrics of answers that the user names: a Python function, a regular expression, JSON and its schema, ROUGE, chrF.

Each is one number a row, so every one gets the same paired interval as exact match. `parse` is the only door: it reads what
`evaluation.metrics` says and refuses what cannot be scored before any model is loaded.
"""

import functools
import hashlib
import importlib
import inspect
import json
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from lora_select.errors import InputError
from lora_select.evaluation import metrics
from lora_select.evaluation.wording import SHARE_UNIT

SCORE_UNIT = "mean score"
KINDS = ("function", "regex", "json", "json_schema", "rouge", "chrf")
ROUGE = re.compile(r"rouge(\d|L|Lsum)")


@dataclass(frozen=True)
class AnswerMetric(ABC):
    """A number for one answer. `checkable`: 0 on every row means that no answer is right."""

    name: str
    unit: ClassVar[str] = SCORE_UNIT
    checkable: ClassVar[bool] = False

    @abstractmethod
    def score(self, prediction: str, reference: str) -> float:
        """What `prediction` is worth where `reference` was expected; higher is better."""


@final
@dataclass(frozen=True)
class FunctionMetric(AnswerMetric):
    """A function of the user's, `(prediction, reference) -> float`."""

    path: str
    function: Callable[[str, str], float]

    def score(self, prediction: str, reference: str) -> float:
        """What the function returns.

        Raises:
            InputError: it raises, or returns what is no finite number.
        """
        try:
            value = float(self.function(prediction, reference))
        except Exception as error:
            raise InputError(
                f"`evaluation.metrics.{self.name}`: {self.path} failed on the answer {prediction[:80]!r} "
                f"({type(error).__name__}: {error})"
            ) from error
        if not math.isfinite(value):
            raise InputError(f"`evaluation.metrics.{self.name}`: {self.path} gave {value} for {prediction[:80]!r}")
        return value


@final
@dataclass(frozen=True)
class RegexMetric(AnswerMetric):
    """With a group: whether its last match is the same text in answer and reference. Without: whether the answer matches."""

    pattern: re.Pattern[str]
    unit: ClassVar[str] = SHARE_UNIT
    checkable: ClassVar[bool] = True

    def score(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        if not self.pattern.groups:
            return float(self.pattern.search(prediction) is not None)
        given, wanted = self._last(prediction), self._last(reference)
        return float(given is not None and given == wanted)

    def _last(self, text: str) -> str | None:
        found = [match.group(1) for match in self.pattern.finditer(text)]
        return found[-1] if found else None


@final
@dataclass(frozen=True)
class JsonMetric(AnswerMetric):
    """Whether the answer is a JSON object or list."""

    unit: ClassVar[str] = SHARE_UNIT
    checkable: ClassVar[bool] = True

    def score(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        del reference
        return float(metrics.as_json(prediction) is not None)


@final
@dataclass(frozen=True)
class SchemaMetric(AnswerMetric):
    """Whether the answer is JSON that fits a JSON schema; `validator` is one of the `jsonschema` library's."""

    validator: Any
    unit: ClassVar[str] = SHARE_UNIT
    checkable: ClassVar[bool] = True

    def score(self, prediction: str, reference: str) -> float:
        """1 or 0."""
        del reference
        value = metrics.as_json(prediction)
        return float(value is not None and self.validator.is_valid(value))


@final
@dataclass(frozen=True)
class RougeMetric(AnswerMetric):
    """ROUGE's F measure by Google's `rouge-score`, in [0, 1]. Lin, ROUGE: A Package for Automatic Evaluation (2004)."""

    measure: str
    scorer: Any

    def score(self, prediction: str, reference: str) -> float:
        """In [0, 1]."""
        return float(self.scorer.score(reference, prediction)[self.measure].fmeasure)


@final
@dataclass(frozen=True)
class ChrfMetric(AnswerMetric):
    """chrF2 by `sacrebleu`, divided by 100. Popović, chrF: character n-gram F-score (2015)."""

    scorer: Any

    def score(self, prediction: str, reference: str) -> float:
        """In [0, 1]."""
        return float(self.scorer.sentence_score(prediction, [reference]).score) / 100


def parse(wanted: Mapping[str, Any], *, folder: Path = Path()) -> tuple[AnswerMetric, ...]:
    """The metrics that `evaluation.metrics` names.

    Args:
        wanted: name -> `module:function`, or a mapping with one of `function`, `regex`, `json: true`, `json_schema`, `rouge`,
            `chrf: true`.
        folder: what a schema's file name is relative to.

    Raises:
        InputError: anything that cannot be scored, the name and the way out in the sentence.
    """
    return tuple(_one(name, spec, folder) for name, spec in wanted.items())


def source_digest(wanted: Mapping[str, Any], *, folder: Path = Path()) -> str:
    """SHA-256 over what the metrics are made of: a function of the same name with other code is another metric.

    Args:
        wanted: as :func:`parse` takes it.
        folder: what a schema's file name is relative to.

    Raises:
        InputError: as :func:`parse`.
    """
    total = hashlib.sha256()
    for name, spec in sorted(wanted.items()):
        (metric,) = parse({name: spec}, folder=folder)
        total.update(json.dumps([name, spec], sort_keys=True).encode())
        if isinstance(metric, FunctionMetric):
            file = inspect.getsourcefile(inspect.unwrap(metric.function))
            total.update(Path(file).read_bytes() if file else b"")
        if isinstance(metric, SchemaMetric):
            total.update(json.dumps(metric.validator.schema, sort_keys=True).encode())
    return total.hexdigest()


def scores(metric: AnswerMetric, answers: Sequence[str], expected: Sequence[str]) -> list[float]:
    """One number a row, in order."""
    return [metric.score(answer, reference) for answer, reference in zip(answers, expected, strict=True)]


def _one(name: str, spec: Any, folder: Path) -> AnswerMetric:
    if name in ("loss", "exact_match", "valid_json", "forgetting") or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise InputError(
            f"`evaluation.metrics`: {name!r} cannot name a metric; use small letters, digits and _, and none of the built-in "
            "loss, exact_match, valid_json, forgetting"
        )
    if isinstance(spec, str):
        spec = {"function": spec}
    if not isinstance(spec, Mapping) or len(spec) != 1 or next(iter(spec)) not in KINDS:
        raise InputError(
            f"`evaluation.metrics.{name}` is {spec!r}; write `module:function`, or one of {', '.join(KINDS)} and its value"
        )
    kind, value = next(iter(spec.items()))
    return _MAKERS[kind](name, value, folder)


def _function(name: str, value: Any, folder: Path) -> AnswerMetric:
    del folder
    module, colon, attribute = str(value).partition(":")
    if not colon or not module or not attribute:
        raise InputError(f"`evaluation.metrics.{name}`: {value!r} must read `module:function`")
    try:
        found = functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:  # a module may raise anything when it is imported
        raise InputError(
            f"`evaluation.metrics.{name}`: {value} cannot be imported ({type(error).__name__}: {error}); put its file where "
            "Python finds it, such as on PYTHONPATH"
        ) from error
    if not callable(found):
        raise InputError(f"`evaluation.metrics.{name}`: {value} is a {type(found).__name__} and cannot be called")
    return FunctionMetric(name, str(value), found)


def _regex(name: str, value: Any, folder: Path) -> AnswerMetric:
    del folder
    try:
        return RegexMetric(name, re.compile(str(value)))
    except re.error as error:
        raise InputError(f"`evaluation.metrics.{name}`: {value!r} is no regular expression ({error})") from error


def _json(name: str, value: Any, folder: Path) -> AnswerMetric:
    del folder
    if value is not True:
        raise InputError(f"`evaluation.metrics.{name}`: write `json: true`, got {value!r}")
    return JsonMetric(name)


def _schema(name: str, value: Any, folder: Path) -> AnswerMetric:
    import referencing
    from jsonschema import validators

    if isinstance(value, str):
        file = folder / value
        try:
            value = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"`evaluation.metrics.{name}`: {file} cannot be read as JSON ({error})") from error
    try:
        kind = validators.validator_for(value, default=validators.Draft202012Validator)
        kind.check_schema(value)
        # An empty registry: a schema that points elsewhere is refused and not fetched from the network.
        validator = kind(value, registry=referencing.Registry())
        list(validator.iter_errors({}))
    except Exception as error:  # SchemaError, an unresolvable reference, or what a strange schema makes of the library
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputError(f"`evaluation.metrics.{name}` is no JSON schema that can be used: {first}") from error
    return SchemaMetric(name, validator)


def _rouge(name: str, value: Any, folder: Path) -> AnswerMetric:
    del folder
    if not ROUGE.fullmatch(str(value)):
        raise InputError(
            f"`evaluation.metrics.{name}`: {value!r} is no ROUGE; write rouge1, rouge2, rougeL or rougeLsum"
        )
    module = _library(name, "rouge_score.rouge_scorer", "rouge-score")
    return RougeMetric(name, str(value), module.RougeScorer([str(value)]))


def _chrf(name: str, value: Any, folder: Path) -> AnswerMetric:
    del folder
    if value is not True:
        raise InputError(f"`evaluation.metrics.{name}`: write `chrf: true`, got {value!r}")
    return ChrfMetric(name, _library(name, "sacrebleu.metrics", "sacrebleu").CHRF())


def _library(name: str, module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"`evaluation.metrics.{name}` needs {package}, which is not installed: pip install 'lora-select[metrics]'"
        ) from error


_MAKERS: dict[str, Callable[[str, Any, Path], AnswerMetric]] = {
    "function": _function,
    "regex": _regex,
    "json": _json,
    "json_schema": _schema,
    "rouge": _rouge,
    "chrf": _chrf,
}
