"""Tasks one after the other: a walk that was interrupted goes on as one that was not, and every arm is given what it is named after."""

import pytest
import torch
from torch import nn

from benchmarks.retention.learners import Kept, Task
from benchmarks.retention.sequence import Walk, lost
from lora_select.data.labels.tokens import TokenRow
from lora_select.retention import forms
from lora_select.retention.forms import Form, Update
from lora_select.retention.moments import InputSums, Moments


class Line:
    """One linear layer that learns by adding what its rows say; its loss on a task is the distance to the task's own matrix."""

    name = "line"
    order: tuple[str, ...] = ("a", "b", "c")
    arms: tuple[str, ...] = ("raw", "filter", "replay")
    few, many = 4, 8

    def __init__(self):
        self.model = nn.Linear(3, 3, bias=False).requires_grad_(False)
        nn.init.zeros_(self.model.weight)
        self.modules = {"": self.model}
        self.given, self.seen, self.asked = [], [], []

    def task(self, name):
        rows = tuple(TokenRow(f"{name}{n}", (self.order.index(name), n), (False, True)) for n in range(40))
        return Task(rows, rows, rows)

    def train(self, rows, seed, folder):
        self.given.append([row.row_id for row in rows])
        generator = torch.Generator().manual_seed(len(rows) + rows[0].input_ids[0] + seed)
        update = Update(torch.randn(2, 3, generator=generator), torch.randn(3, 2, generator=generator))
        return Form(folder, {}, forms.AS_TRAINED, {"": update}, {})

    def keep(self, form, task, earlier, arm, selection):
        self.asked.append((arm, selection))
        self.seen.append(None if earlier is None else earlier.of("x").tokens)
        halved = {name: Update(one.a / 2, one.b) for name, one in form.updates.items()}
        return Kept(halved, {"strength": 1.0}, Moments({"x": InputSums(torch.eye(3).double(), 3.0, 40)}, {"x": "x"}))

    def loss(self, name):
        return float((self.model.weight - self.order.index(name)).norm())

    def texts(self):
        return {"prose": float(self.model.weight.norm())}


@pytest.mark.parametrize("arm", Line.arms)
def test_a_walk_that_is_taken_up_after_every_step_ends_as_one_that_never_stopped(tmp_path, arm):
    whole, parts = ({"losses": [], "chosen": []} for _ in range(2))
    walk = Walk(Line(), arm, 0, tmp_path / "whole", whole)
    while not walk.over:
        walk.step()
    seen = []
    for _ in range(4):
        again = Walk(Line(), arm, 0, tmp_path / "parts", parts)
        again.step()
        seen += again.learner.seen
    assert again.over
    assert [list(one) for one in whole["losses"]] == [["a"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert parts == whole
    assert set(lost(whole["losses"])) == {"a", "b"}
    assert seen == ([None, 40, 80] if arm == "filter" else [])
    olds = [{row[0] for row in given} for given in walk.learner.given]
    assert olds == ([{"a"}, {"a", "b"}, {"a", "b", "c"}] if arm == "replay" else [{"a"}, {"b"}, {"c"}])
    assert [len(given) for given in walk.learner.given] == ([40, 42, 44] if arm == "replay" else [40, 40, 40])
