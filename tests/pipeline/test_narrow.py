"""A LoRA at the least rank that keeps its task: the cut is the best in the metric of the inputs, the rank is chosen on kept rows."""

import pytest
import torch

from lora_select.cli.main import main
from lora_select.pipeline.stages import narrow
from lora_select.retention.forms import Update
from lora_select.retention.moments import InputSums
from lora_select.retention.path import Losses


def update_and_sums(seed=0, m=12, n=20, r=6):
    g = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, n, generator=g) * torch.linspace(0.01, 3, n)
    sums = InputSums((inputs.T @ inputs).double(), float(inputs.square().sum()), 200)
    return Update(torch.randn(r, n, generator=g), torch.randn(m, r, generator=g)), sums


@pytest.mark.parametrize("rank", [1, 3, 5])
def test_the_cut_is_the_best_of_its_rank_in_the_metric_of_the_inputs(rank):
    update, sums = update_and_sums()
    root = torch.linalg.cholesky(sums.products / sums.tokens)
    whole = update.b.double() @ update.a.double()
    turned = narrow.turn(update, sums)
    assert torch.allclose(turned.b.double() @ turned.a.double(), whole, atol=1e-4)
    cut = narrow.at_rank({"layer": turned}, rank)["layer"]
    left = ((whole - cut.b.double() @ cut.a.double()) @ root).square().sum()
    best = torch.linalg.svdvals(whole @ root)[rank:].square().sum()
    assert left.item() == pytest.approx(best.item(), rel=1e-4)
    plain = narrow.at_rank({"layer": narrow.turn(update, None)}, rank)["layer"]
    unweighted = ((whole - plain.b.double() @ plain.a.double()) @ root).square().sum()
    assert unweighted > 1.05 * best


def test_a_sketch_of_the_inputs_cuts_nearly_as_well():
    update, _ = update_and_sums()
    g = torch.Generator().manual_seed(2)
    inputs = torch.randn(200, 6, generator=g) @ torch.randn(6, 20, generator=g) + 0.1 * torch.randn(
        200, 20, generator=g
    )
    sums = InputSums((inputs.T @ inputs).double(), float(inputs.square().sum()), 200)
    omega = torch.randn(20, 12, generator=torch.Generator().manual_seed(3))
    sketched = InputSums(sums.products.float() @ omega, sums.energy, sums.tokens, omega)
    exact, near = (narrow.energy(update.a.double(), one) for one in (sums, sketched))
    assert (exact - near).norm() < 0.05 * exact.norm()


def test_halves_are_tried_until_one_costs_more_than_a_hundredth():
    start = Losses((2.0,) * 10, (1,) * 10)
    tried = narrow.search(16, start, lambda rank: [2.0 + 0.038 / rank] * 10)
    assert [(one.rank, one.within) for one in tried] == [(8, True), (4, True), (2, True), (1, False)]
    assert [one.rank for one in narrow.search(16, start, lambda _: [3.0] * 10)] == [8]
    assert narrow.search(1, start, lambda _: pytest.fail("nothing is below one")) == ()


def test_layers_of_a_smaller_rank_are_filled_up_with_zeros():
    update, sums = update_and_sums()
    ((a, b),) = narrow.padded({"layer": narrow.turn(update, sums)}, 9).values()
    assert (a.shape, b.shape) == ((9, 20), (12, 9))
    assert torch.allclose(b @ a, update.b @ update.a, atol=1e-4)


def test_a_rank_that_is_no_number_is_refused(capsys):
    with pytest.raises(SystemExit):
        main(["export", "run", "--rank", "0", "--out", "out"])
    assert "neither a whole number above 0 nor `least`" in capsys.readouterr().err
