import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from lora_select import variants
from lora_select.spectral.view import RANKS
from lora_select.variants import CANDIDATES, CATALOGUE, VARIANTS, named

NOT_VARIANTS = {"__init__"}


def test_every_file_is_in_the_catalogue_and_has_a_contract_test():
    files = {path.stem for path in Path(variants.__file__).parent.glob("*.py")} - NOT_VARIANTS
    assert {variant.name for variant in VARIANTS} == files, "add the class to VARIANTS"
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert files <= tests, "give the variant a contract test"


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_is_final_frozen_and_documented(variant):
    assert dataclasses.is_dataclass(variant)
    assert variant.__dataclass_params__.frozen
    assert variant.__final__
    assert "Tangent" in variant.__doc__ or "tangent" in variant.__doc__
    assert "share" in variant.__doc__
    assert all("arXiv" in reference for reference in variant.references)
    module = importlib.import_module(variant.__module__)
    assert len(Path(module.__file__).read_text().splitlines()) <= 120


def test_peft_arguments_are_plain_data_with_their_effect():
    assert named("rslora", 8).peft_arguments()["use_rslora"] is True
    assert named("dora", 8).peft_arguments()["use_dora"] is True
    for name in ("lora", "pissa", "eva", "milora", "olora", "corda_ipm", "lora_ga", "lora_one", "loftq"):
        assert named(name, 8).peft_arguments()["init_lora_weights"] is True
    assert len(CATALOGUE) == len(CANDIDATES) * len(RANKS)


def test_choosing_does_not_import_torch():
    modules = "lora_select.selection.select, lora_select.selection.explain, lora_select.spectral.analyze"
    code = f"import sys, {modules}, lora_select.starts; print(sorted({{'torch', 'peft'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
