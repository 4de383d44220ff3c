"""The matrix covers the catalogue, its cells are what they say, and the selector listens to it."""

import dataclasses
from pathlib import Path

import pytest

from benchmarks.capability import page, tiny, verify
from lora_select.cli.main import main
from lora_select.errors import InputError
from lora_select.records import Constraints
from lora_select.training import zero
from lora_select.variants import VARIANTS, matrix, offered, support

ROOT = Path(__file__).parents[2]
NAMES = [variant.name for variant in VARIANTS]


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_has_every_cell(name):
    row = matrix.read().get(name)
    assert row is not None, f"{name} has no cells; run: python -m benchmarks.capability --only {name}"
    missing = sorted(set(matrix.every_key()) - set(row))
    assert not missing, f"{name} lacks {missing}; run: python -m benchmarks.capability --only {name}"


def test_the_page_in_the_docs_is_made_from_the_matrix():
    assert (ROOT / "docs" / "variants.md").read_text(encoding="utf-8") == page.page(matrix.read())


def test_cells_of_other_versions_are_not_mixed(tmp_path, monkeypatch):
    file = tmp_path / "m.json"
    matrix.write({}, file)
    monkeypatch.setattr(matrix, "versions", lambda: {"peft": "0.0"})
    with pytest.raises(InputError, match="--again"):
        verify.verify(file, names=["lora"])


def test_the_page_counts_every_cell():
    found = matrix.read()
    text = page.page(found)
    works, refused, rest = page.counts(found)
    assert works + refused + rest == len(NAMES) * len(matrix.every_key())
    assert f"{works} work, {refused} refused, {rest} not run" in text
    assert all(f"| {name} |" in text for name in NAMES)


def test_a_cell_is_one_of_three_things(tmp_path):
    with pytest.raises(ValueError, match="must be works, refused: reason or not run: reason"):
        matrix.write({"lora": {"llama/fp32/train": "maybe"}}, tmp_path / "m.json")


@pytest.mark.parametrize("name", ["lora", "lora_ga", "dora"])
def test_recorded_cells_are_what_is_seen_now(name, tmp_path):
    file = tmp_path / "matrix.json"
    now = verify.verify(file, names=[name], settings=["llama/fp32"], say=lambda line: None)[name]
    recorded = matrix.read()[name]
    assert {key: cell.split(":")[0] for key, cell in now.items()} == {key: recorded[key].split(":")[0] for key in now}
    assert verify.verify(file, names=[name], settings=["llama/fp32"], say=pytest.fail)[name] == now


def test_a_measured_failure_is_a_sentence_of_the_selector(monkeypatch):
    row = {"llama/fp32/train": "works", "llama/nf4/train": "refused: TypeError: no", "llama/zero3/train": "works"}
    monkeypatch.setattr(support, "matrix", lambda: {"x": row})
    asked = {"quantized_base": None, "zero_stage": 3, "must_merge": False}
    assert support.faults("x", Constraints(**asked)) == ()
    (sentence,) = support.faults("x", Constraints(**asked | {"quantized_base": "nf4"}))
    assert sentence == "measured: x does not train on a nf4 base: TypeError: no"


def test_gpt2_s_layers_are_asked_for_by_the_model_s_architecture():
    asked = {"quantized_base": None, "zero_stage": 0, "must_merge": False}
    assert support.faults("miss", Constraints(**asked), architecture="LlamaForCausalLM") == ()
    (sentence,) = support.faults("miss", Constraints(**asked), architecture="GPT2LMHeadModel")
    assert "measured: miss does not train on GPT-2's layers: TypeError: Target module Conv1D" in sentence
    assert support.faults("lora", Constraints(**asked), architecture="GPT2LMHeadModel") == ()


def test_the_catalogue_is_listed_for_a_model(tiny_model_folder, capsys):
    code = main(["variants", "--model", str(tiny_model_folder), "--r", "8", "--serve", "vllm"])
    out = capsys.readouterr().out
    assert code == 0
    assert "14 linear layers" in out
    lines = {line.split("\t")[0].rstrip("*"): line.split("\t") for line in out.splitlines() if "\t" in line}
    assert lines["lora"][2] == f"{8 * sum(m + n for m, n in SHAPES) * 2:,}"
    assert lines["lora"][-1] == "ok"
    assert lines["dora"][-1] == "refused"
    assert "dora: vLLM serves plain LoRA, and dora has no LoRA of the same function" in out


SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]


@pytest.fixture(scope="module")
def measured_on(tmp_path_factory):
    """The setting that the cells of the tiny Llama were measured in, with nothing asked."""
    folder = tmp_path_factory.mktemp("tiny") / "llama"
    tiny.make("llama", folder)
    layers = tiny.layers_of(tiny.Bench("llama", "fp32", folder).load(), "llama")
    return tiny.context(layers)


@pytest.mark.parametrize("kind", VARIANTS, ids=NAMES)
def test_what_a_variant_says_of_itself_is_what_was_measured(kind, measured_on):
    """A base, a merge or a ZeRO stage is refused by the variant's own rules exactly where the matrix refuses it."""
    variant, row = offered(kind, [verify.RANK])[0], matrix.read()[kind.name]
    own = (
        support.HELD[0] if variant.initialization != "loftq" else "nf4"
    )  # LoftQ has no start on a base that lost nothing
    held = {"quantized_base": None if own == "fp32" else own}
    rank = "" if own == "fp32" else f"{own}-"
    asked = [({"quantized_base": base}, [f"llama/{base}/train", f"llama/{base}/reload"]) for base in ("nf4", "int8")]
    asked += [({"zero_stage": s} | held, [f"llama/{rank}zero{s}/{c}" for c in ("train", "save")]) for s in (0, 2, 3)]
    asked += [({"must_merge": True}, ["llama/fp32/merge"])] if own == "fp32" else []
    for changes, keys in asked:
        said = variant.violations(dataclasses.replace(measured_on, **changes))
        seen = [f"{key}: {row[key]}" for key in keys if row[key] != matrix.WORKS]
        assert bool(said) == bool(seen), (
            f"{kind.name} with {changes} says {said or 'yes'}, the matrix {seen or 'works'}"
        )


@pytest.mark.parametrize("base", [None, "nf4", "int8"])
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", VARIANTS, ids=NAMES)
def test_selector_and_plan_refuse_what_failed_and_nothing_else(kind, stage, base, measured_on):
    """Together, rules and matrix refuse a base at a ZeRO stage exactly where a cell of it does not work."""
    variant, row = offered(kind, [verify.RANK])[0], matrix.read()[kind.name]
    setting = f"llama/{f'{base}-' if base else ''}zero{2 if stage == 1 else stage}"
    keys = [f"{setting}/{check}" for check in matrix.RANK_CHECKS] + ([f"llama/{base}/reload"] if base else [])
    asked = dataclasses.replace(measured_on, quantized_base=base, zero_stage=stage)
    said = (
        *variant.violations(asked),
        *support.faults(kind.name, Constraints(quantized_base=base, zero_stage=stage)),
    )
    assert bool(said) == any(row[key] != matrix.WORKS for key in keys)
    if base is None and kind.name != "loftq":
        told = tiny.spec(variant, "llama", asked.layers)
        assert (zero.refusal(told, stage, base) is None) == (not said)


@pytest.mark.slow
def test_two_ranks_at_zero3_equal_one_process(tmp_path):
    """Starts from data and SVD are computed unsharded and fed to all ranks; the adapter is saved whole."""
    names = ["lora", "pissa", "eva", "lora_ga", "olora"]
    found = verify.verify(tmp_path / "m.json", names=names, settings=["llama/zero3"], say=lambda line: None)
    assert found == {name: {"llama/zero3/train": "works", "llama/zero3/save": "works"} for name in names}
