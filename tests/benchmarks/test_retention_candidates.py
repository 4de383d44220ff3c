"""Which place an adapter has beside plain LoRA on the same rows, and which layers KappaTune's half takes."""

import json
from typing import Any

import pytest
import torch

from benchmarks.retention import halves
from benchmarks.retention.candidates import beside, meets
from benchmarks.retention.kinds import KINDS
from benchmarks.retention.score import Case
from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.retention import moments
from lora_select.spectral.linear_layers import linear_layers


def case(task: tuple[float, float], text: float, labels: int = 1) -> Case:
    """Two rows of `labels` labels everywhere; the base is at 1 on text."""
    raw = {kind: [text, text] for kind in KINDS} | {"task": list(task)}
    base = {kind: [1.0, 1.0] for kind in KINDS} | {"task": [9.0, 9.0]}
    return Case(
        "x", {"arms": {"raw": {"losses": raw}, "base": {"losses": base}}, "labels": dict.fromkeys(raw, [labels] * 2)}
    )


@pytest.mark.parametrize(
    ("task", "text", "place", "met"),
    [
        ((1.0, 1.0), 1.5, "ahead", True),
        ((1.1, 0.92), 1.5, "ahead", True),  # the task's loss is within its error
        ((1.2, 1.2), 1.5, "trades", False),
        ((1.0, 1.0), 1.7, "ahead", False),  # less is forgotten, but not 0.6
        ((1.2, 1.2), 2.0, "behind", False),
        ((0.8, 0.8), 2.0, "ahead", False),
        ((1.1, 0.9), 2.0, "level", False),
    ],
)
def test_an_adapter_has_a_place_beside_plain_lora(task, text, place, met):
    plain, other = case((1.0, 1.0), 2.0), case(task, text)
    assert beside(other, plain, "raw").place == place
    assert meets(other, plain, "raw") is met


def test_trainings_that_were_judged_on_different_rows_are_not_compared():
    with pytest.raises(ValueError, match="different rows"):
        beside(case((1.0, 1.0), 1.5, labels=2), case((1.0, 1.0), 2.0), "raw")


def test_the_lowest_condition_numbers_come_first(tiny_model_folder, tmp_path):
    model = models.load_model(str(tiny_model_folder))
    layers: dict[str, Any] = dict(linear_layers(model))
    with torch.no_grad():
        next(iter(layers.values())).weight[0] *= 1e4
    places = halves._conditions(model, layers, tmp_path / "conditions.json")
    conditions = {name: float(torch.linalg.cond(module.weight.detach())) for name, module in layers.items()}
    assert sorted(places, key=lambda name: -places[name]) == sorted(conditions, key=lambda name: conditions[name])
    assert set(json.loads((tmp_path / "conditions.json").read_text())) == set(layers)


def test_a_price_does_not_change_where_a_layers_outputs_are_rescaled_and_the_next_layer_undoes_it(tiny_model_folder):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(100, 250, (24, 12), generator=generator).tolist()
    rows = [TokenRow(str(i), tuple(row), (*[False] * 6, *[True] * 6)) for i, row in enumerate(ids)]
    found = []
    for factor in (1.0, 8.0):
        model = models.load_model(str(tiny_model_folder))
        layers: dict[str, Any] = dict(linear_layers(model))
        value, output = (next(name for name in layers if name.endswith(end)) for end in ("v_proj", "o_proj"))
        with torch.no_grad():
            layers[value].weight *= factor
            layers[output].weight /= factor
        given = moments.stream(model, layers, rows[:8], 3)
        found.append(halves.prices(model, layers, [given], rows, 3))
    assert found[1] == pytest.approx(found[0], rel=1e-3, abs=1e-12)
    assert max(found[0].values()) > 1e-9
