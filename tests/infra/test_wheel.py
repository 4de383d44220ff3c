"""The wheel: built from the files that git tracks, it holds what the code reads, and imports nothing heavy."""

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built in a copy, without network: what lies in `build/` of the tree would come along."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "lora_select", folder / "lora_select", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder)
    command = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q", "-w", "out"]
    subprocess.run(command, cwd=folder, check=True)
    return next((folder / "out").glob("*.whl"))


def test_it_holds_every_file_of_the_library(wheel):
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    there = {str(file.relative_to(ROOT)) for file in (ROOT / "lora_select").rglob("*") if file.is_file()}
    assert held == {name for name in there if not name.endswith(".pyc")}


def test_it_imports_without_torch_and_finds_its_data(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path)
    script = (
        "import sys, lora_select\n"
        "assert lora_select.__file__.startswith(sys.argv[1]), lora_select.__file__\n"
        "print([one for one in ('torch', 'transformers', 'numpy', 'pydantic') if one in sys.modules])\n"
        "from lora_select.selection import calibration\n"
        "from lora_select.variants import matrix\n"
        "from lora_select.report import report\n"
        "print(calibration.FILE.is_file(), matrix.FILE.is_file())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "[]\nTrue True\n"
