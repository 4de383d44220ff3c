"""Files are data: nothing that is read is run, and no path that a file names leads out of the runs folder."""

import ast
import json
from pathlib import Path

import books
import pytest

from lora_select import models
from lora_select.audit import run_entries
from lora_select.audit.alias import standing
from lora_select.audit.alias.promotion import alone, recover
from lora_select.errors import InputError

ROOT = Path(__file__).parents[2]
RUNS_CODE = {"pickle", "cPickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"}


def calls(tree: ast.AST):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}


def test_no_source_reads_a_pickle_or_runs_text():
    files = [file for part in ("lora_select", "flows", "tasks") for file in (ROOT / part).rglob("*.py")]
    assert len(files) > 100
    found = []
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        imported = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        imported |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        found += [f"{file}: imports {name}" for name in imported & RUNS_CODE]
        for name, keywords in calls(tree):
            if name in ("eval", "exec", "yaml.load", "os.system") or keywords.get("shell") == "True":
                found.append(f"{file}: {name}")
            if name == "torch.load" and keywords.get("weights_only") != "True":
                found.append(f"{file}: {name}")
            if keywords.get("allow_pickle") == "True" or keywords.get("trust_remote_code") == "True":
                found.append(f"{file}: {name}")
    assert found == []


def test_an_adapter_that_is_a_pickle_is_refused(tmp_path):
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(InputError, match="pickled weights are never read"):
        models.with_adapter(None, tmp_path)


def test_a_stage_outside_the_runs_folder_is_none(tmp_path):
    run = books.finished_run(tmp_path / "runs")
    noted = json.loads((run / "stages.json").read_text())
    noted["adapter"] |= {"stage": "..", "key": "../elsewhere"}
    (run / "stages.json").write_text(json.dumps(noted))
    assert run_entries.stages(run) == {}


def test_a_promise_that_leads_outside_is_abandoned(tmp_path, store):
    office = books.office(tmp_path / "runs", store)
    run = books.finished_run(tmp_path / "runs")
    outside = tmp_path / "outside"
    run_entries.stages(run)["adapter"].folder.rename(outside)
    moves = {
        "aliases": {"champion": ""},
        "folder": "../outside",
        "mlflow_run": "x",
        "adapter": "0" * 64,
        "seal": "",
        "before": {},
    }
    office.ledger.append(standing.INTENDED, model=books.MODEL, details={"moves": moves})
    with alone(office.ledger, books.MODEL):
        [entry] = recover(office, books.MODEL)
    assert entry.kind == "abandoned"
    assert "is outside" in entry.details["reason"]
