"""Metrics that the user names: each scores as its definition says; what cannot be scored is refused before a model is loaded."""

import json
import sys

import pytest

from lora_select.errors import InputError
from lora_select.evaluation.user_metrics import parse, scores, source_digest

SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}, "additionalProperties": False}


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "house_metrics.py").write_text(
        "def length(prediction, reference):\n    return len(prediction) - len(reference)\n"
        "def fails(prediction, reference):\n    return 1 / 0\n"
        "def endless(prediction, reference):\n    return float('inf')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "house_metrics"
    sys.modules.pop("house_metrics", None)


def score(spec, prediction, reference="", **arguments):
    (metric,) = parse({"mine": spec}, **arguments)
    return metric.score(prediction, reference)


def test_a_function_by_import_path(module):
    assert score(f"{module}:length", "four", "two") == 1.0
    (metric,) = parse({"mine": {"function": f"{module}:length"}})
    assert scores(metric, ["a", "bb"], ["", ""]) == [1.0, 2.0]


@pytest.mark.parametrize(
    ("pattern", "prediction", "reference", "value"),
    [
        (r"^yes", "yes, it is", "no", 1.0),
        (r"^yes", "well, yes", "no", 0.0),
        (r"#### (\d+)", "so #### 4 then #### 42", "#### 42", 1.0),
        (r"#### (\d+)", "#### 42 then #### 4", "#### 42", 0.0),
        (r"#### (\d+)", "42", "#### 42", 0.0),
        (r"#### (\d+)", "42", "no number", 0.0),
    ],
)
def test_a_regular_expression(pattern, prediction, reference, value):
    assert score({"regex": pattern}, prediction, reference) == value


def test_json_and_its_schema(tmp_path):
    assert [score({"json": True}, text) for text in ('{"a": 1}', "a", '{"a": NaN}')] == [1.0, 0.0, 0.0]
    texts = ('{"n": 3}', '{"n": 3.5}', '{"n": 3, "m": 1}', "3")
    assert [score({"json_schema": SCHEMA}, text) for text in texts] == [1.0, 0.0, 0.0, 0.0]
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    assert score({"json_schema": "schema.json"}, '{"n": 1}', folder=tmp_path) == 1.0


def test_rouge_and_chrf_agree_with_a_hand_count():
    assert score({"rouge": "rouge1"}, "the cat sat", "the cat ran") == pytest.approx(2 / 3)
    assert score({"rouge": "rougeL"}, "sat cat the", "the cat sat") == pytest.approx(1 / 3)
    assert score({"chrf": True}, "Haus", "Haus") == 1.0
    assert 0 < score({"chrf": True}, "Haus", "Hausboot") < 1


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"regex": "("}, "no regular expression"),
        ("no_colon", "module:function"),
        ("nowhere_at_all:f", "cannot be imported"),
        ({"function": "house_metrics:number"}, "cannot be called"),
        ({"function": "house_metrics:missing"}, "cannot be imported"),
        ({"json": "yes"}, "json: true"),
        ({"json_schema": {"type": "nothing"}}, "no JSON schema"),
        ({"json_schema": {"$ref": "http://127.0.0.1:1/schema.json"}}, "no JSON schema"),
        ({"json_schema": "missing.json"}, "cannot be read"),
        ({"rouge": "rougeX"}, "no ROUGE"),
        ({"chrf": 6}, "chrf: true"),
        ({"bleu": True}, "one of function"),
        ({"json": True, "regex": "a"}, "one of function"),
        (7, "one of function"),
    ],
)
def test_what_cannot_be_scored_is_refused_at_once(module, spec, words):
    with pytest.raises(InputError, match="evaluation.metrics") as error:
        parse({"mine": spec})
    assert words in str(error.value)


@pytest.mark.parametrize("name", ["loss", "exact_match", "Mine", "a-b", ""])
def test_a_name_that_is_taken_or_cannot_be_logged(name):
    with pytest.raises(InputError, match="cannot name a metric"):
        parse({name: {"json": True}})


@pytest.mark.parametrize(("name", "words"), [("fails", "ZeroDivisionError"), ("endless", "inf")])
def test_a_function_that_fails_names_itself_and_the_answer(module, name, words):
    with pytest.raises(InputError, match=words) as error:
        score(f"{module}:{name}", "the answer")
    assert "the answer" in str(error.value)


def test_other_code_under_the_same_name_is_another_metric(module, tmp_path):
    def digests():
        return [
            source_digest(spec, folder=tmp_path)
            for spec in ({"m": f"{module}:length"}, {"m": {"json_schema": "s.json"}})
        ]

    (tmp_path / "s.json").write_text(json.dumps(SCHEMA))
    before = digests()
    assert digests() == before
    (tmp_path / "house_metrics.py").write_text((tmp_path / "house_metrics.py").read_text() + "# another\n")
    (tmp_path / "s.json").write_text("{}")
    assert not set(digests()) & set(before)
