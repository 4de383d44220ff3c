"""Two tasks one after the other on a tiny model: the second training takes less from the first where its moments came with the base."""

import dataclasses

import pytest
import torch
from test_retain import rows, run, trained  # noqa: F401 (a fixture)
from training_jobs import plan, spec

from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.export.command import export
from lora_select.records.retention import IN_BASE, KEPT_MOMENTS
from lora_select.retention import form_losses, forms
from lora_select.retention.moments import InputSums, Moments, load
from lora_select.training import trials


def other_rows(count, seed):
    """The same letters, another answer."""
    return [
        TokenRow(f"o{row.row_id}", (*(letter - 40 for letter in row.input_ids[:-2]), 210, 211), row.label_mask)
        for row in rows(count, seed)
    ]


def loss(base, adapter, given):
    model = models.load_model(str(base))
    updates = forms.read(adapter, model, load_base=lambda: model).updates
    return sum(form_losses.losses(model, updates, given, 3)) / (2 * len(given))


@pytest.fixture(scope="module")
def merged(trained, tiny_model_folder, tmp_path_factory):  # noqa: F811
    """The model after its first task, the adapter merged into it, and its kept moments beside it."""
    place = tmp_path_factory.mktemp("first")
    assert run(tiny_model_folder, trained, place / "kept", keep_moments=True).moments_file is not None
    export(place / "kept", "merged", place / "merged", rank=None, max_error=0.05, base=str(tiny_model_folder))
    return place / "merged"


@pytest.mark.slow
def test_a_merged_model_brings_its_tasks_moments_and_the_next_filter_keeps_them(merged, tmp_path):
    assert load(merged / IN_BASE).tokens > 0
    given, steps = spec(), plan(num_processes=1, total_steps=30, learning_rate=3e-3, epochs=60.0)
    with trials.adapted(models.load_model(str(merged)), given, steps) as network:
        trials.train(network, given, steps, other_rows(64, 0), 3)
        network.save_pretrained(str(tmp_path / "second"))
    first = rows(32, seed=2)
    made = run(merged, tmp_path / "second", tmp_path / "with", task=other_rows, keep_moments=True)
    kept = loss(merged, tmp_path / "with" / "adapter", first)
    tokens = load(merged / IN_BASE).tokens
    assert load(tmp_path / "with" / KEPT_MOMENTS).tokens == tokens + made.task_tokens
    assert any("earlier tasks" in note for note in made.notes)
    (merged / IN_BASE).unlink()
    run(merged, tmp_path / "second", tmp_path / "without", task=other_rows)
    raw, without = (loss(merged, tmp_path / name, first) for name in ("second", "without/adapter"))
    assert kept < without < raw


def test_sums_of_inputs_that_only_one_task_saw_are_kept():
    def sums(value):
        return InputSums(torch.eye(2).double() * value, 2.0 * value, 1)

    first = Moments({"q": sums(1), "up": sums(2)}, {"q": "q", "k": "q", "up": "up"})
    second = Moments({"q": sums(3), "down": sums(4)}, {"q": "q", "down": "down"})
    both = first.joined(second)
    assert {name: float(one.energy) for name, one in both.sums.items()} == {"q": 8.0, "up": 4.0, "down": 8.0}
    assert both.owner == {"q": "q", "k": "q", "up": "up", "down": "down"}
    assert dataclasses.asdict(both.sums["q"])["tokens"] == 2
