"""The matrix covers the catalogue, its cells are what they say, and the selector listens to it."""

import pytest

from lora_select.capability import cells, known, page, verify
from lora_select.cli import main
from lora_select.variants import VARIANTS

NAMES = [variant.name for variant in VARIANTS]


@pytest.mark.parametrize("name", NAMES)
def test_every_variant_has_every_cell(name):
    row = cells.read().get(name)
    assert row is not None, f"{name} has no cells; run: lora-select variants --verify --only {name}"
    missing = sorted(set(cells.every_key()) - set(row))
    assert not missing, f"{name} lacks {missing}; run: lora-select variants --verify --only {name}"


def test_the_page_is_made_from_the_matrix():
    found = cells.read()
    text = page.page(found)
    works, refused, rest = page.counts(found)
    assert works + refused + rest == len(NAMES) * len(cells.every_key())
    assert f"{works} work, {refused} refused, {rest} not run" in text
    assert all(f"| {name} |" in text for name in NAMES)


def test_a_cell_is_one_of_three_things(tmp_path):
    with pytest.raises(ValueError, match="must be works, refused: reason or not run: reason"):
        cells.write({"lora": {"llama/fp32/train": "maybe"}}, tmp_path / "m.json")


@pytest.mark.parametrize("name", ["lora", "lora_ga", "dora"])
def test_recorded_cells_are_what_is_seen_now(name, tmp_path):
    file = tmp_path / "matrix.json"
    now = verify.verify(file, names=[name], settings=["llama/fp32"], say=lambda line: None)[name]
    recorded = cells.read()[name]
    assert {key: cell.split(":")[0] for key, cell in now.items()} == {key: recorded[key].split(":")[0] for key in now}
    assert verify.verify(file, names=[name], settings=["llama/fp32"], say=pytest.fail)[name] == now


def test_a_measured_failure_is_a_sentence_of_the_selector(monkeypatch):
    row = {"llama/fp32/train": "works", "llama/nf4/train": "refused: TypeError: no", "llama/zero3/train": "works"}
    monkeypatch.setattr(known, "matrix", lambda: {"x": row})
    asked = {"quantized_base": None, "zero_stage": 3, "must_merge": False}
    assert known.faults("x", **asked) == ()
    (sentence,) = known.faults("x", **asked | {"quantized_base": "nf4"})
    assert sentence == "measured: x does not train on a nf4 base: TypeError: no"


def test_the_catalogue_is_listed_for_a_model(tiny_model_folder, capsys):
    code = main(["variants", "--model", str(tiny_model_folder), "--r", "8", "--serve", "vllm"])
    out = capsys.readouterr().out
    assert code == 0
    assert "14 linear layers" in out
    lines = {line.split("\t")[0].rstrip("*"): line.split("\t") for line in out.splitlines() if "\t" in line}
    assert lines["lora"][2] == f"{8 * sum(m + n for m, n in SHAPES) * 2:,}"
    assert lines["lora"][-1] == "ok"
    assert lines["dora"][-1] == "refused"
    assert "dora: vLLM serves plain LoRA only" in out


SHAPES = [(64, 64), (32, 64), (32, 64), (64, 64), (128, 64), (128, 64), (64, 128)]


@pytest.mark.slow
def test_two_ranks_at_zero3_equal_one_process(tmp_path):
    """Starts from data and SVD are computed unsharded and fed to all ranks; the adapter is saved whole."""
    names = ["lora", "pissa", "eva", "lora_ga", "olora"]
    found = verify.verify(tmp_path / "m.json", names=names, settings=["llama/zero3"], say=lambda line: None)
    assert found == {name: {"llama/zero3/train": "works", "llama/zero3/save": "works"} for name in names}
