"""The uncentred second moment from centred eigenpairs and a mean, against a dense one."""

import pytest
import torch

from lora_select.diagnostics.costs import uncentred


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("q", [1, 5, 11, 12])
def test_it_is_the_centred_one_and_the_means_outer_product(q):
    n = 12
    v, values, mean = torch.linalg.qr(draw(0, n, q))[0], torch.arange(q, 0, -1.0).double(), draw(1, n)
    rest = 0.25 if q < n else 0.0
    variance = float(values.sum()) + rest * (n - q)
    dense = v * values @ v.T + rest * (torch.eye(n) - v @ v.T) + torch.outer(mean, mean)
    vectors, eigenvalues, remainder = uncentred(v, values, mean, variance)
    vectors, eigenvalues = vectors.double(), eigenvalues.double()
    found = vectors * (eigenvalues - remainder) @ vectors.T + remainder * torch.eye(n)
    torch.testing.assert_close(found, dense, rtol=0, atol=1e-5)
    assert bool((eigenvalues.diff() <= 0).all())


def test_a_mean_within_the_directions_and_none_at_all():
    v = torch.eye(4)[:, :2]
    for mean, largest in ((torch.zeros(4), 3.0), (torch.tensor([2.0, 0.0, 0.0, 0.0]), 7.0)):
        _, values, rest = uncentred(v, torch.tensor([3.0, 2.0]), mean, 6.0)
        assert rest == pytest.approx(0.5)
        assert float(values[0]) == pytest.approx(largest)
