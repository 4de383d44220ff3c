import numpy as np
import pytest
import torch
from laws import within_standard_errors

from lora_select.spectral.numerics import jackknife, squared_norm, top_left
from lora_select.spectral.sketch import FoldSketches, Sizes, TestMatrices, haar, inner_products

M, N, FOLDS = 40, 50, 4


def sketch(gradients: torch.Tensor, columns: int, seed: int) -> FoldSketches:
    """Sketches of known fold sums (F, m, n), as a pass would leave them."""
    tests = TestMatrices(Sizes(columns), seed, torch.device("cpu"))
    side, psi = tests.input_side(gradients.shape[2]), tests.output_side(gradients.shape[1])
    right = gradients @ side.both
    return FoldSketches(right[:, :, : side.k], right[:, :, side.k :], gradients.transpose(1, 2) @ psi, side, psi)


def gradients(rank: int = 3, noise: float = 0.1, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    signal = torch.randn(M, rank, generator=generator) @ torch.randn(rank, N, generator=generator)
    return signal + noise * torch.randn(FOLDS, M, N, generator=generator)


def gram(stack: torch.Tensor) -> torch.Tensor:
    flat = stack.double().flatten(1)
    return flat @ flat.T


@pytest.mark.parametrize(("rank", "noise"), [(3, 0.1), (3, 2.0), (0, 1.0)])
def test_inner_products_are_unbiased_over_seeds(rank, noise):
    g = gradients(rank, noise)
    truth = gram(g)
    estimates = torch.stack([inner_products(sketch(g, 8, seed), 4)[0] for seed in range(120)])
    within_standard_errors(estimates[:, 0, 1], float(truth[0, 1]))
    within_standard_errors(estimates[:, 2, 2], float(truth[2, 2]))


def test_inner_products_are_exact_for_a_gradient_within_the_basis():
    g = gradients(rank=3, noise=0.0)
    inner, _ = inner_products(sketch(g, 8, 0), 4)
    torch.testing.assert_close(inner, gram(g), rtol=1e-4, atol=0)


def test_error_falls_as_the_sketch_grows_and_vanishes_when_it_is_complete():
    g = gradients(rank=5, noise=1.0)
    truth = gram(g)[0, 1]

    def error(columns):
        each = [inner_products(sketch(g, columns, seed), columns // 2)[0][0, 1] for seed in range(24)]
        return float((torch.stack(each) - truth).square().mean().sqrt())

    errors = [error(columns) for columns in (4, 12, 24)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] > 0
    assert error(50) < 1e-4 * abs(truth)


def test_probes_tell_the_error_of_the_sketch():
    g = gradients(rank=2, noise=1.0)
    truth, inside = gram(g)[0, 1], []
    for seed in range(60):
        inner, each = inner_products(sketch(g, 12, seed), 6)
        error = each[:, 0, 1].std() / len(each) ** 0.5
        inside.append(abs(inner[0, 1] - truth) <= 2 * error)
    assert np.mean(inside) >= 0.85


def test_coefficients_are_unbiased_though_the_basis_misses_most():
    g = gradients(rank=0, noise=1.0)
    basis = top_left(torch.randn(M, 4, generator=torch.Generator().manual_seed(9)), 4)
    entries = [float(sketch(g, 8, seed).coefficients(basis)[1, 2, 3]) for seed in range(150)]
    within_standard_errors(entries, float((basis.T @ g[1])[2, 3]))


def test_reconstruction_recovers_a_low_rank_gradient():
    g = gradients(rank=3, noise=0.0)
    left, values, right = sketch(g, 8, 1).reconstruct(4)
    torch.testing.assert_close(left * values @ right.T, g.sum(0), rtol=1e-3, atol=1e-3)
    assert values[3] < 1e-3 * values[0]


def test_sketches_are_linear():
    g = gradients()
    parts, whole = sketch(g, 8, 0), sketch(g.sum(0, keepdim=True), 8, 0)
    torch.testing.assert_close(parts.y.sum(0), whole.y[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(parts.z.sum(0), whole.z[0], rtol=1e-4, atol=1e-4)


def test_haar_columns_are_orthonormal_and_the_identity_when_complete():
    q = haar(30, 7, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q.T @ q, torch.eye(7), rtol=0, atol=1e-5)
    assert torch.equal(haar(5, 9, torch.Generator()), torch.eye(5))


@pytest.mark.parametrize("tokens", [3, 200])
def test_squared_norm_equals_the_dense_one_on_both_routes(tokens):
    x, d = torch.randn(tokens, 12), torch.randn(tokens, 9)
    torch.testing.assert_close(squared_norm(x, d), (d.T @ x).double().square().sum(), rtol=1e-5, atol=0)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=12)
    left_out = [np.delete(values, k).mean() for k in range(12)]
    assert jackknife(left_out) == pytest.approx(values.std(ddof=1) / 12**0.5)
