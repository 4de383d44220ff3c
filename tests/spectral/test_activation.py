import pytest
import reference
import torch
from one_layer import run_layer
from torch import nn

from lora_select.spectral.accumulate import LayerSums, MicrobatchSlice, spacing
from lora_select.spectral.activation import ActivationMoments
from lora_select.spectral.capture import SharedInput, TokenMask
from lora_select.spectral.sketch import Sizes, TestMatrices

WIDTH, COUNT = 300, 16


def inputs(tokens: int, seed: int = 0) -> torch.Tensor:
    """Rows with a mean and a spectrum that decays as slowly as those of real inputs."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.arange(1, WIDTH + 1).float() ** -0.6
    return 0.5 + torch.randn(tokens, WIDTH, generator=generator) * scales


def random_test(columns: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(WIDTH, columns, generator=torch.Generator().manual_seed(seed))


def measure(parts, columns: int = 96, kept: int = 48, turn_after: int = 1) -> ActivationMoments:
    moments = ActivationMoments(random_test(columns), kept)
    for index, part in enumerate(parts):
        if index == turn_after:
            moments.turn()
        moments.add(SharedInput(part, None).moments(moments.test, slice(None)))
    return moments


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eigh(torch.as_tensor(reference.second_moment(x.double().numpy())))
    return values.flip(0), vectors.flip(1)


def agreement(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean squared cosine of the principal angles."""
    return float((one[:, :COUNT].double().T @ other[:, :COUNT].double()).square().sum()) / COUNT


def test_turning_the_test_matrix_finds_the_leading_directions():
    x = inputs(2000)
    values, vectors = exact(x)
    turned = measure(x.split(250)).leading(32)
    random = measure(x.split(250), 48, turn_after=-1).leading(32)
    assert agreement(turned[1], vectors) > 0.97
    assert agreement(random[1], vectors) < 0.9
    assert turned[0][:COUNT].tolist() == pytest.approx(values[:COUNT].tolist(), rel=0.03)
    torch.testing.assert_close(turned[1].T @ turned[1], torch.eye(32), rtol=0, atol=1e-4)


def test_each_eigenvalue_is_a_lower_bound():
    for seed in range(5):
        x = inputs(1200, seed)
        found = measure(x.split(150)).leading(32)[0]
        assert bool((found.double() <= exact(x)[0][:32] * (1 + 1e-5)).all())


def test_the_directions_converge_as_columns_grow():
    x = inputs(2000)
    lost = [1 - agreement(measure(x.split(250), 2 * kept, kept).leading(32)[1], exact(x)[1]) for kept in (24, 48, 96)]
    assert lost[0] > 2 * lost[1] > 4 * lost[2]


def test_all_columns_give_the_exact_second_moment():
    x = inputs(2000)
    found = measure(x.split(250), WIDTH, WIDTH)
    assert found.test is None
    assert agreement(found.leading(32)[1], exact(x)[1]) == pytest.approx(1, abs=1e-5)


def test_a_shift_of_the_mean_after_the_turn_is_a_direction():
    x = inputs(1000)
    shift = torch.zeros(WIDTH)
    shift[-1] = 10.0
    parts = [x[:500], x[500:] + shift]
    moments = measure(parts)
    values, vectors = moments.leading(8)
    assert float(vectors[-1, 0] ** 2) > 0.99
    assert float(values[0]) == pytest.approx(float(exact(torch.cat(parts))[0][0]), rel=0.01)
    assert moments.energy() == pytest.approx(float(torch.cat(parts).square().sum(1).mean()), rel=1e-4)
    torch.testing.assert_close(moments.mean(), torch.cat(parts).mean(0), rtol=1e-4, atol=1e-4)
    assert moments.variance() == pytest.approx(float(exact(torch.cat(parts))[0].sum()), rel=1e-3)


@pytest.mark.parametrize("tokens", [0, 1, 5])
def test_fewer_tokens_than_columns_before_the_turn(tokens):
    x = inputs(1500)
    moments = measure([x[:tokens], *x[tokens:].split(300)])
    assert moments.test is not None
    torch.testing.assert_close(moments.test.T @ moments.test, torch.eye(48), rtol=0, atol=1e-4)
    values, vectors = moments.leading(32)
    assert vectors.shape == (WIDTH, 32)
    assert float(vectors[:3].square().sum()) > 2.7
    assert bool(torch.isfinite(values).all())


def test_a_layer_that_is_not_reached_after_the_turn_keeps_what_came_before():
    x = inputs(800)
    moments = measure([x])
    before = moments.leading(16)
    moments.turn()
    assert moments.tokens() == 800
    assert agreement(moments.leading(16)[1], before[1]) == pytest.approx(1, abs=1e-4)


def test_a_microbatch_in_parts_gives_the_same_sample_of_tokens():
    layer = nn.Linear(WIDTH, 20, bias=False)
    x, d = inputs(6 * 35).view(6, 35, WIDTH), torch.randn(6 * 35, 20)
    found = []
    for cuts in ((6,), (1, 2, 3), (3, 3)):
        sums = LayerSums(layer, TestMatrices(Sizes(8), 0), 4)
        sums.begin()
        first = 0
        for rows in cuts:
            end = first + rows
            shared = SharedInput(x[first:end], TokenMask(torch.ones(rows, 35)))
            sums.add(MicrobatchSlice(0, first, end, 6, 4), shared, d[first * 35 : end * 35])
            first = end
        found.append(sums.activations.sums())
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            torch.testing.assert_close(same, one, rtol=1e-4, atol=1e-3)
    assert 6 * 34 / 4 - 3 < float(found[0][3]) < 6 * 34 / 4 + 3


def test_tokens_that_give_second_moments_are_spread_over_the_pass():
    assert spacing(2048, 32) == 8
    assert spacing(1024, 4) == spacing(0, 4) == 1


def test_a_finished_layer_has_directions_as_good_as_the_moments():
    x = inputs(2000)
    tensors = run_layer(nn.Linear(WIDTH, 40, bias=False), [(p, torch.randn(len(p), 40)) for p in x.split(250)], 32)[1]
    assert agreement(tensors["layer.activation_vectors"], exact(x)[1]) > 0.97


def test_padding_and_the_first_token_of_each_row_do_not_count():
    x = torch.ones(2, 4, 3)
    x[:, 0] = 1000.0
    x[1, 3] = torch.inf
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    shared = SharedInput(x, TokenMask(mask))
    assert shared.rows.shape == (7, 3)
    assert shared.weights.tolist() == [0, 1, 1, 1, 0, 1, 1]
    second, total, energy, tokens = shared.moments(None, slice(None))
    assert float(tokens) == 5.0
    assert float(energy) == 15.0
    assert total.tolist() == [5.0] * 3
    assert torch.equal(second, torch.full((3, 3), 5.0))
