"""The rules of the catalogue; each failure names what a new variant lacks (docs/adding-a-variant.md)."""

import dataclasses
import fnmatch
import json
import subprocess
import sys
import tomllib
from pathlib import Path

import peft
import pytest

from lora_select import variants
from lora_select.spectral.statistics import ADAPTER_RANKS
from lora_select.variants import CANDIDATES, CATALOGUE, LEFT_OUT, VARIANTS, named, offered
from lora_select.variants.base import Variant

ROOT = Path(__file__).parents[2]
SHARED = {"base", "listing", "low_rank", "matrix", "residual", "support", "tangent"}
"""What several variants use, and what was measured of them."""


def stem_of(variant) -> str:
    """The file that a variant must have: its name, or the first words of it where a file holds two."""
    stem = variant.__module__.rpartition(".")[2]
    return stem if variant.name.startswith(f"{stem}_") else variant.name


def missing(folder: Path, tests: Path, catalogue, contracts: list[str]) -> list[str]:
    """What the files of `folder` lack, a sentence each."""
    stems = sorted(path.stem for path in folder.glob("*.py"))
    files = [stem for stem in stems if not stem.startswith("__") and stem not in SHARED]
    known = {stem_of(variant) for variant in catalogue}
    found = [
        f"{stem}.py holds no class of VARIANTS named {stem!r}: add it to VARIANTS"
        for stem in files
        if stem not in known
    ]
    for variant in catalogue:
        if stem_of(variant) not in files:
            found.append(
                f"{variant.__name__} is called {variant.name!r} and has no file {variant.name}.py: rename either"
            )
    for stem in files:
        test = tests / f"test_{stem}.py"
        if not test.is_file() or "contract." not in test.read_text():
            found.append(f"{stem}.py has no tests/variants/test_{stem}.py that runs the contract: write one")
        if not any(fnmatch.fnmatch(f"lora_select.variants.{stem}", pattern) for pattern in contracts):
            found.append(f"{stem}.py is not in pyproject.toml's contract `variants do not import one another`: add it")
        if len((folder / f"{stem}.py").read_text().splitlines()) > 120:
            found.append(f"{stem}.py is longer than 120 lines: shorten it")
    return found + [sentence for variant in catalogue for sentence in undocumented(variant)]


def undocumented(variant) -> list[str]:
    """What the class itself lacks."""
    name, text = variant.__name__, variant.__doc__ or ""
    rules = {
        "is not a frozen dataclass": dataclasses.is_dataclass(variant) and variant.__dataclass_params__.frozen,
        "is not final": getattr(variant, "__final__", False),
        "states no `W(theta) =` in its docstring": "W(theta) =" in text,
        "does not say what its tangent is": "tangent" in text.lower(),
        "does not say what share of a gradient that tangent holds": "share" in text,
        "cites no paper": bool(variant.references)
        and all("arXiv" in one or "OpenReview" in one for one in variant.references),
        "names no config class of PEFT": hasattr(peft, variant.peft_class),
        "gives no cost of its own, nor says that nobody measured it": "cost" in vars(variant),
    }
    return [f"{name} {fault}" for fault, holds in rules.items() if not holds]


def contracts() -> list[str]:
    """The modules that pyproject.toml keeps apart."""
    rules = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    return next(rule["modules"] for rule in rules if rule["type"] == "independence")


def test_nothing_is_missing():
    assert missing(Path(variants.__file__).parent, Path(__file__).parent, VARIANTS, contracts()) == []


def test_what_is_missing_is_named(tmp_path):
    """A file without an entry, an entry without a file, a test without the contract, a class without its words."""

    class Half(Variant):
        """Something new."""

        name = "half"
        references = ()
        peft_class = "NoConfig"

    (tmp_path / "quarter.py").write_text("# nothing\n" * 121)
    (tmp_path / "test_quarter.py").write_text("def test(): pass\n")
    said = "\n".join(missing(tmp_path, tmp_path, (Half,), []))
    for words in (
        "quarter.py holds no class of VARIANTS",
        "Half is called 'half' and has no file half.py",
        "no tests/variants/test_quarter.py that runs the contract",
        "quarter.py is not in pyproject.toml's contract",
        "quarter.py is longer than 120 lines",
        "Half is not a frozen dataclass",
        "Half is not final",
        "Half states no `W(theta) =`",
        "does not say what its tangent is",
        "share of a gradient",
        "cites no paper",
        "names no config class of PEFT",
        "gives no cost of its own",
    ):
        assert words in said


@pytest.mark.parametrize("variant", VARIANTS)
def test_peft_arguments_are_plain_data_that_peft_takes(variant):
    one = offered(variant, [8])[0]
    arguments = one.peft_arguments()
    assert json.loads(json.dumps(arguments)) == arguments
    assert json.loads(json.dumps(one.optimizer)) == one.optimizer
    config = getattr(peft, one.peft_class)(**arguments)
    assert all(getattr(config, key) == (set(v) if isinstance(v, list) else v) or not v for key, v in arguments.items())


def test_flags_have_their_effect():
    assert named("rslora", 8).peft_arguments()["use_rslora"] is True
    assert named("dora", 8).peft_arguments()["use_dora"] is True
    for name in ("lora", "pissa", "eva", "milora", "olora", "corda_ipm", "lora_ga", "lora_one", "loftq"):
        assert named(name, 8).peft_arguments()["init_lora_weights"] is True


def test_names_and_keys_are_unique():
    assert len({variant.name for variant in VARIANTS}) == len(VARIANTS)
    assert len({f"{v.name}@{v.r}" for v in CATALOGUE}) == len(CATALOGUE)
    assert set(CANDIDATES) <= set(VARIANTS)
    assert {type(v) for v in CATALOGUE} >= set(CANDIDATES)
    assert all(v.r in (0, *ADAPTER_RANKS) for v in CATALOGUE)


def test_what_is_left_out_has_a_reason_and_is_not_in():
    left = {name.strip() for names in LEFT_OUT for name in names.split(",")}
    assert not left & {variant.name for variant in VARIANTS}
    assert all(len(reason.split()) > 5 for reason in LEFT_OUT.values())


def test_choosing_does_not_import_torch():
    modules = "lora_select.selection.rule, lora_select.selection.explanation, lora_select.spectral.measuring_pass"
    code = f"import sys, {modules}, lora_select.initialization; print(sorted({{'torch', 'peft'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
