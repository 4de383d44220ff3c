"""The shape of the tree that a stranger opens: few modules a folder, one name a module, short files, a constraint in few places."""

import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARY = ROOT / "lora_select"
HOUSE = ("lora_select", "flows", "tasks", "benchmarks")
WIDE = {"lora_select/variants", "lora_select/training/worker"}
"""One small file a variant; one process with all that it does."""
CONSTRAINTS = ("must_merge", "allow_modified_base", "max_parameters", "prefer_retention")
"""Names that are no other thing's, so that they can be counted."""


def sources(*folders: str) -> list[Path]:
    found = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]
    assert len(found) > 20
    return found


def modules(*folders: str) -> list[Path]:
    return [file for file in sources(*folders) if not file.name.startswith("__")]


def test_no_folder_holds_more_modules_than_a_person_reads():
    held = Counter(str(file.parent.relative_to(ROOT)) for file in modules(*HOUSE))
    assert {folder: count for folder, count in held.items() if count > 14 and folder not in WIDE} == {}
    assert held["lora_select"] <= 6


def test_a_name_of_a_module_says_which_one_is_meant():
    named = Counter(file.name for file in modules("lora_select", "flows", "tasks"))
    assert sum(count * (count - 1) // 2 for count in named.values()) <= 3, [n for n, c in named.items() if c > 1]


@pytest.mark.parametrize("word", CONSTRAINTS)
def test_a_constraint_is_spelt_in_few_files(word):
    spelt = [file for file in sources(*HOUSE) if re.search(rf"\b{word}\b", file.read_text(encoding="utf-8"))]
    assert 1 <= len(spelt) <= 5, spelt


def test_files_are_short():
    lines = {file: file.read_text(encoding="utf-8").count("\n") for file in sources(*HOUSE, "tests")}
    assert {str(file.relative_to(ROOT)): count for file, count in lines.items() if count > 400} == {}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="the files were unpacked without their repository")
def test_nothing_built_or_heavy_is_tracked_needs_git():
    """What `make docs` and `lora-select analyze` leave behind, weights and data sets stay out of the repository."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    files = [ROOT / name for name in listed if name and (ROOT / name).is_file()]
    assert len(files) > 20
    assert [str(file.relative_to(ROOT)) for file in files if file.stat().st_size > 1_000_000] == []
    assert {file.relative_to(ROOT).parts[0] for file in files} & {"site", "analysis", "runs", "mlruns"} == set()
    assert [file.name for file in files if file.suffix in {".safetensors", ".gguf", ".pt", ".bin"}] == []
