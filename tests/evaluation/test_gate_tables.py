"""The tables of docs/promotion.md are those of the benchmark's file, and the file keeps its criteria."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    return json.loads((ROOT / "benchmarks" / "results" / "promotion.json").read_text())


def rows(heading):
    """First cell -> numbers of the table after a heading."""
    text = (ROOT / "docs" / "promotion.md").read_text().split(heading)[1]
    lines = [line for line in text.split("\n\n")[1].splitlines()[2:] if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {first: [float(cell) for cell in rest] for first, *rest in cells}


def test_false_promotions(found):
    expected = {
        name: [round(100 * cells[key]["rate"], 1) for key in ("30", "100", "300", "own")]
        for name, cells in found["promoted"].items()
    }
    assert rows("**False promotions**") == expected


def test_power(found):
    expected = {
        f"{effect} of the loss": [
            round(100 * found["power"][policy][effect][key], 1)
            for policy in ("rows alone", "default")
            for key in ("30", "100", "300")
        ]
        for effect in found["power"]["default"]
    }
    made = rows("**Power**")
    assert set(made) == set(expected)
    for name, numbers in expected.items():
        assert made[name] == pytest.approx(numbers, abs=0.051)


def test_the_price_of_each_level(found):
    expected = {
        name: [100 * cells[key]["worst"] for key in ("30", "100", "300")]
        + [100 * found["levels_power"][name][effect]["300"] for effect in ("10%", "20%", "30%")]
        for name, cells in found["levels_two_seeds"].items()
    }
    made = rows("**The price of it**")
    assert set(made) == set(expected)
    for name, numbers in expected.items():
        assert made[name] == pytest.approx(numbers, abs=0.051)


def test_what_measuring_gives(found):
    measured = {f"{k} seeds": (two, found["measured_power"][k]) for k, two in found["measured_two_seeds"].items()}
    measured["default"] = (found["promoted"]["two seeds, default"], found["power"]["default"])
    made = rows("**What measuring gives**")
    assert set(made) == set(measured)
    for name, (two, power) in measured.items():
        numbers = [100 * two[key]["rate"] for key in ("30", "100", "300")]
        numbers += [100 * power[effect]["300"] for effect in ("5%", "10%", "20%", "30%")]
        assert made[name] == pytest.approx(numbers, abs=0.051)


def test_measured_seeds_keep_the_nominal_rate_in_the_mean(found):
    cells = [cell for by_rows in found["measured_two_seeds"].values() for cell in by_rows.values()]
    assert max(cell["rate"] for cell in cells) <= 0.05
    assert found["measured_power"]["5"]["10%"]["300"] >= 0.4


def test_the_default_keeps_the_nominal_rate_for_two_seeds_on_every_setting(found):
    for name in ("the same adapter", "no true difference, default", "two seeds, default"):
        assert all(cells["worst"] <= 0.05 for cells in found["promoted"][name].values()), name
    assert all(cells["rate"] <= 0.05 for cells in found["promoted"]["no true difference, rows alone"].values())
    kept = [
        float(name)
        for name, cells in found["levels_two_seeds"].items()
        if all(cell["worst"] <= 0.05 for cell in cells.values())
    ]
    assert min(kept) == found["seed_noise"]


def test_the_file_is_of_the_default_that_is_shipped(found):
    from lora_select.config import PromotionConfig
    from lora_select.evaluation.policy import SEED_NOISE, Policy

    assert found["seed_noise"] == SEED_NOISE == Policy().seed_noise == PromotionConfig().seed_noise
