import pytest
import reference
import torch

from lora_select.spectral.activation import ActivationMoments
from lora_select.spectral.capture import SharedInput, TokenMask
from lora_select.spectral.weight import minor_system, weight_system


def test_leading_system_of_a_decaying_weight():
    generator = torch.Generator().manual_seed(0)
    u = torch.linalg.qr(torch.randn(200, 150, generator=generator))[0]
    v = torch.linalg.qr(torch.randn(180, 150, generator=generator))[0]
    values = torch.arange(1, 151).float() ** -0.5
    weight = u * values @ v.T
    system = weight_system(weight, 16, seed=1)
    assert system.values.tolist() == pytest.approx(values[:16].tolist(), rel=3e-2)
    assert system.energy == pytest.approx(float(values.square().sum()), rel=1e-4)
    assert system.stable_rank == pytest.approx(system.energy, rel=1e-3)
    torch.testing.assert_close(system.left.T @ system.left, torch.eye(16), rtol=0, atol=1e-4)
    top = system.right[:, :4]
    assert float((v[:, :4].T @ top).square().sum()) > 3.8


@pytest.mark.parametrize("shape", [(200, 180), (150, 260)])
def test_trailing_system_of_a_decaying_weight(shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(*shape, generator=generator) * (torch.arange(1, shape[1] + 1).float() ** -0.5)
    system = minor_system(weight, 12, seed=1, scale=torch.linalg.svdvals(weight)[:1])
    u, values, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    assert system.values.tolist() == pytest.approx(values.flip(0)[:12].tolist(), rel=1e-2)
    assert float((vt[-8:] @ system.right[:, :8].double()).square().sum()) > 7.9
    assert float((u[:, -8:].T @ system.left[:, :8].double()).square().sum()) > 7.9
    assert system.residual < 1e-2
    torch.testing.assert_close(system.left.T @ system.left, torch.eye(12), rtol=0, atol=1e-4)


def test_stated_residual_covers_the_error_of_each_value():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(300, 260, generator=generator)
    system = weight_system(weight, 16, seed=1)
    truth = torch.linalg.svdvals(weight)
    for value in system.values:
        assert float((truth - value).abs().min()) <= system.residual * float(truth[0])


def test_a_singular_weight_has_a_trailing_system():
    weight = torch.randn(60, 4) @ torch.randn(4, 50)
    system = minor_system(weight, 8, seed=0, scale=torch.linalg.svdvals(weight)[:1])
    assert float(system.values.max()) < 1e-3
    assert torch.isfinite(system.left).all()
    assert torch.isfinite(system.right).all()


def test_a_zero_weight_has_stable_rank_zero():
    assert weight_system(torch.zeros(6, 5), 3, seed=0).stable_rank == 0.0


def test_streamed_moments_of_a_wide_layer_find_the_leading_directions():
    generator = torch.Generator().manual_seed(0)
    width, tokens = 300, 2000
    scales = torch.ones(width) * 0.1
    scales[:6] = torch.tensor([9.0, 7.0, 5.0, 4.0, 3.0, 2.0])
    x = 3.0 + torch.randn(tokens, width, generator=generator) * scales
    moments = ActivationMoments(width, torch.linalg.qr(torch.randn(width, 48, generator=generator))[0])
    for part in x.split(250):
        shared = SharedInput(part, None)
        moments.add(shared.moments(moments.test, tokens=250))
    values, vectors = moments.leading(6)
    truth = torch.linalg.eigvalsh(torch.as_tensor(reference.second_moment(x.double().numpy()))).flip(0)
    assert values.tolist() == pytest.approx(truth[:6].tolist(), rel=0.02)
    assert float(vectors[:6].square().sum()) > 5.9
    assert moments.energy() == pytest.approx(float(x.square().sum(1).mean()), rel=1e-4)


def test_padding_and_the_first_token_of_each_row_do_not_count():
    x = torch.ones(2, 4, 3)
    x[:, 0] = 1000.0
    x[1, 3] = torch.inf
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]])
    shared = SharedInput(x, TokenMask(mask))
    assert shared.rows.shape == (7, 3)
    assert shared.weights.tolist() == [0, 1, 1, 1, 0, 1, 1]
    second, total, energy, tokens = shared.moments(None, tokens=1)
    assert float(tokens) == 5.0
    assert float(energy) == 15.0
    assert total.tolist() == [5.0] * 3
    assert torch.equal(second, torch.full((3, 3), 5.0))
