"""Every command where the extras are not installed: it works, or says in one sentence which extra it wants."""

import argparse
import ast
import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from core_alone import names
from recipe_samples import chats, write_jsonl

from lora_select.cli import main as cli
from lora_select.errors import EXTRAS, InputError, missing

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tests" / "core_alone.py"
WORKS = ("variants", "data", "clean", "doctor")
AFTER_MEASURING = ("recommend", "explain", "replay", "compare", "verify", "ledger", "export")
WANTS = {
    "finetune": "train",
    "noise": "train",
    "node": "train",
    "analyze": "report",
    "retain": "report",
    "mcp": "mcp",
    "ui": "track",
    "approve": "track",
    "reject": "track",
    "recommend, tracked": "track",
    "recommend, a dataset on the hub": "data",
    "recommend, a quantised base": "quant",
    "recommend, a GGUF base": "quant",
    "export, to GGUF": "quant",
}


def peft_folder(model, folder):
    """An adapter that changes the function."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False)
    get_peft_model(AutoModelForCausalLM.from_pretrained(model), config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def place(tiny_model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("core")
    write_jsonl(folder / "rows.jsonl", chats(40))
    (folder / "base.gguf").write_bytes(b"GGUF")
    (folder / "store.db").touch()
    notes = {"uri": f"sqlite:///{folder}/store.db", "experiment_id": "1"}
    (folder / "tracked").mkdir()
    (folder / "tracked" / "tracking.json").write_text(json.dumps(notes))
    peft_folder(tiny_model_folder, folder / "adapter")
    # Processes below the one that is started are blocked by their sitecustomize.
    (folder / "sitecustomize.py").write_text(SCRIPT.read_text(encoding="utf-8").replace("parents[1]", "parents[0]"))
    (folder / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return folder


@pytest.fixture(scope="module")
def recommend(tiny_model_folder):
    sizes = ["--microbatches", "4", "--sketch-size", "8", "--batch-size", "8", "--max-length", "512"]
    return ["recommend", str(tiny_model_folder), "rows.jsonl", "--runs-dir", "runs", "--out", "out", *sizes]


def ask(place, cases):
    """Exit code and output of each case, all in one process that can import the core alone."""
    (place / "cases.json").write_text(json.dumps(cases))
    paths = os.pathsep.join((str(place), str(ROOT)))
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "cases.json"], capture_output=True, text=True, check=False, cwd=place,
        env={**os.environ, "PYTHONPATH": paths, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def ran(place, recommend, tiny_model_folder):
    model, who = str(tiny_model_folder), ["--by", "someone", "--reason", "a test"]
    store, adapter = ["--tracking-uri", "sqlite:///store.db"], ["adapter", "--base", model]
    return ask(
        place,
        {
            "variants": ["variants", "--model", model],
            "data": ["data", "check", "rows.jsonl"],
            "clean": ["clean", "--runs", "."],
            "doctor": ["doctor"],
            "finetune": ["finetune", model, "rows.jsonl"],
            "noise": ["noise", model, "rows.jsonl"],
            "node": ["node", ".", "--number", "1"],
            "analyze": ["analyze", "--model", model, "--data", "rows.jsonl"],
            "retain": ["retain", *adapter, "--data", "rows.jsonl", "--out", "kept"],
            "mcp": ["mcp", "--root", "."],
            "ui": ["ui", *store, "--port", "0"],
            "approve": ["approve", "tracked", *who],
            "reject": ["reject", "tracked", *who],
            "recommend, tracked": [*recommend, *store],
            "recommend, a dataset on the hub": [*recommend[:2], "owner/rows", *recommend[3:]],
            "recommend, a quantised base": [*recommend, "--quantize", "nf4"],
            "recommend, a GGUF base": ["recommend", "base.gguf", *recommend[2:]],
            "export, to GGUF": ["export", *adapter, "--to", "gguf", "--out", "gguf"],
        },
    )


@pytest.fixture(scope="module")
def measured(place, recommend, tiny_model_folder):
    return ask(
        place,
        {
            "recommend": recommend,
            "explain": ["explain", "out"],
            "replay": ["replay", "out"],
            "compare": ["compare", "out", "runs/RUN"],
            "verify": ["verify", "runs/RUN", "--offline"],
            "ledger": ["ledger", "show", "--runs", "runs"],
            "export": ["export", "adapter", "--base", str(tiny_model_folder), "--out", "exported"],
            "rollback": [
                "rollback", "rows", "--by", "someone", "--reason", "a test", "--runs", "runs",
                "--tracking-uri", "sqlite:///store.db",
            ],
        },
    )  # fmt: skip


@pytest.mark.parametrize("case", WORKS)
def test_it_works_with_the_core_alone(ran, case):
    code, said = ran[case]
    assert code == 0, said


@pytest.mark.slow
@pytest.mark.parametrize("case", AFTER_MEASURING)
def test_it_works_with_the_core_alone_on_what_was_measured(measured, case):
    code, said = measured[case]
    assert code == 0, said


@pytest.mark.parametrize("case", WANTS)
def test_it_names_its_extra(ran, case):
    code, said = ran[case]
    assert code == 2, said
    assert len(re.findall(rf"error: [^\n]*pip install 'lora-select\[{WANTS[case]}\]'", said)) == 1, said


@pytest.mark.slow
def test_rollback_names_its_extra(measured):
    code, said = measured["rollback"]
    assert (code, said.count("pip install 'lora-select[track]'")) == (2, 1), said


def test_every_command_is_tried():
    commands = next(a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction)).choices
    tried = {*WORKS, *AFTER_MEASURING, *WANTS, "rollback"} - {case for case in WANTS if "," in case}
    assert set(commands) - tried == {"calibrate"}  # reads what `explain` reads, of runs that were trained


def test_whatever_the_library_imports_is_in_the_core_or_in_the_table():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    brought = importlib.metadata.packages_distributions()
    core = names(project["dependencies"])
    imported = set()
    for file in (ROOT / "lora_select").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                imported |= {one.name.partition(".")[0] for one in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                imported.add(node.module.partition(".")[0])
    others = imported - sys.stdlib_module_names - {"lora_select", "huggingface_hub", "tokenizers"}
    assert {one for one in others if not names(brought.get(one, [one])) & core} <= set(EXTRAS)
    own_names = {"OpenSSL": "pyopenssl", "cyclonedx": "cyclonedx-python-lib", "pynvml": "nvidia-ml-py"}
    own_names |= {"sklearn": "scikit-learn", "scipy": "scikit-learn"}  # scipy comes with it
    for module, extra in EXTRAS.items():
        assert names([own_names.get(module, module)]) <= names(project["optional-dependencies"][extra])


def test_an_import_that_fails_in_the_middle_is_a_sentence_where_an_extra_mends_it():
    error = missing(ModuleNotFoundError("No module named 'gguf'", name="gguf.constants"), "`export`")
    assert isinstance(error, InputError)
    assert str(error) == "`export` needs gguf: pip install 'lora-select[quant]'"
    assert missing(ModuleNotFoundError(name="no_such_module"), "`export`") is None
