"""A run that the version before wrote (d023228: tiny Llama, a race of three learning rates) is read, explained and replayed."""

import json
import shutil
from pathlib import Path

import pytest

import lora_select as ls
from lora_select.cli.main import main
from lora_select.pipeline.history import is_earlier, replay

EARLIER = Path(__file__).parent / "earlier_run"


def test_its_decision_follows_from_its_evidence_in_every_number():
    run = ls.load(EARLIER)
    assert run.replay() == []
    assert run.decision.race_digest is not None
    assert is_earlier(run.decision)


def test_an_edited_number_of_it_is_told(tmp_path):
    folder = shutil.copytree(EARLIER, tmp_path / "run")
    decision = json.loads((folder / "decision.json").read_text())
    decision["choice"]["learning_rate"] *= 1.1
    (folder / "decision.json").write_text(json.dumps(decision, sort_keys=True, indent=2) + "\n")
    assert any("learning_rate" in line for line in replay(folder))


def test_its_records_are_read_and_told(capsys):
    run = ls.load(EARLIER)
    assert run.adapter.steps == run.plan.total_steps
    assert run.promotion is not None
    assert run.evaluation.metrics["loss"].adapted < run.evaluation.metrics["loss"].base
    assert run.promotion.alias in repr(run)
    assert main(["explain", str(EARLIER)]) == 0
    assert main(["compare", str(EARLIER), str(EARLIER)]) == 0
    assert capsys.readouterr().out.count(run.decision.choice_key) >= 3


@pytest.mark.parametrize("name", ["profile", "spectra", "race"])
def test_changed_evidence_is_noticed(name, tmp_path):
    shutil.copytree(EARLIER, tmp_path / "run")
    file = tmp_path / "run" / f"{name}.json"
    file.write_text(file.read_text().replace("0", "1", 1))
    assert ls.load(tmp_path / "run").replay() == [f"{name}.json is not the file that the decision was made from"]
