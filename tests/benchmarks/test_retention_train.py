"""The rivals that are trained anew, on a tiny model, and what the sequence of tasks says of its losses."""

import dataclasses

import pytest
import torch
from training_jobs import plan, spec

from benchmarks.retention import sequence
from benchmarks.retention.settings import RIVALS, SETTINGS
from benchmarks.retention.train import _with_divergence, plan_of
from lora_select import models
from lora_select.data.labels.tokens import TokenRow
from lora_select.retention import form_losses, forms
from lora_select.training import trials


def rows(count, seed, labels):
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(100, 250, (count, 10), generator=generator).tolist()
    return [
        TokenRow(f"{seed}-{i}", tuple(row), (*[False] * (10 - labels), *[True] * labels)) for i, row in enumerate(ids)
    ]


def test_the_penalty_on_divergence_holds_the_reference_back_while_the_task_is_learnt(tiny_model_folder, tmp_path):
    task = [dataclasses.replace(row, input_ids=(*row.input_ids[:8], 200, 201)) for row in rows(32, 0, 2)]
    pieces = rows(8, 1, 9)
    given, steps = spec(), plan(num_processes=1, total_steps=12, learning_rate=3e-3, epochs=60.0)
    moved, learnt = [], []
    for weight in (0.0, 20.0):
        base = models.load_model(str(tiny_model_folder))
        folder = tmp_path / str(weight)
        with trials.adapted(base, given, steps) as network:
            losses = _with_divergence(network, steps, task, pieces, 3, weight)
            network.save_pretrained(str(folder))
        updates = forms.read(folder, base, load_base=None).updates
        moved.append(sum(form_losses.judge(base, {"a": updates}, pieces, 3).kl["a"]))
        learnt.append(losses[0] - losses[-1])
    assert 0 < moved[1] < 0.5 * moved[0]
    assert min(learnt) > 0.1


def test_replayed_pieces_are_all_read_and_a_rival_is_named_after_a_setting():
    made = plan_of(SETTINGS["section-replay"])
    assert made.total_steps * 8 >= 192 + SETTINGS["section-replay"].replay
    assert set(RIVALS.values()) <= set(SETTINGS) - set(RIVALS)


@pytest.mark.parametrize(("last", "verdict"), [(1.15, "holds"), (1.5, "fails")])
def test_what_is_lost_is_a_share_of_a_tasks_own_gain(last, verdict):
    """The first task goes from 3 to 1 and the second from 2 to 1.2; then both drift."""
    losses = [
        {"section": 3.0, "newsgroup": 2.4, "news": 1.5},
        {"section": 1.0, "newsgroup": 2.0, "news": 1.5},
        {"section": 1.1, "newsgroup": 1.2, "news": 1.4},
        {"section": last, "newsgroup": 1.24, "news": 0.5},
    ]
    assert sequence.lost(losses) == pytest.approx({"section": (last - 1.0) / 2, "newsgroup": 0.05})
    [line] = sequence.report({"filter, seed 0": {"losses": losses}})
    assert verdict in line
