import pytest
import torch

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
