import numpy as np
import pytest
import torch
from laws import within_standard_errors

from lora_select.spectral.numerics import error_of, jackknife, squared_norm, top_left
from lora_select.spectral.sketch import (
    FoldSketches,
    Sizes,
    TestMatrices,
    error_factor,
    gaussian,
    inner_products,
)

M, N, FOLDS = 40, 50, 4


def sketch(gradients: torch.Tensor, columns: int, seed: int) -> FoldSketches:
    """Sketches of known fold sums (F, m, n), as a pass would leave them."""
    tests, device = TestMatrices(Sizes(columns), seed), torch.device("cpu")
    side, psi = tests.input_side(gradients.shape[2], device), tests.output_side(gradients.shape[1], device)
    return FoldSketches(gradients @ side.omega, gradients.transpose(1, 2) @ psi, side, psi)


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
    estimates = torch.stack([inner_products(sketch(g, 8, seed), 4).value for seed in range(120)])
    within_standard_errors(estimates[:, 0, 1], float(truth[0, 1]))
    within_standard_errors(estimates[:, 2, 2], float(truth[2, 2]))


def test_inner_products_are_exact_for_a_gradient_within_the_basis():
    g = gradients(rank=3, noise=0.0)
    inner = inner_products(sketch(g, 8, 0), 4)
    torch.testing.assert_close(inner.value, gram(g), rtol=1e-4, atol=0)


def test_error_falls_as_the_sketch_grows_and_vanishes_when_it_is_complete():
    g = gradients(rank=5, noise=1.0)
    truth = gram(g)[0, 1]

    def error(columns):
        each = [inner_products(sketch(g, columns, seed), columns // 2).value[0, 1] for seed in range(24)]
        return float((torch.stack(each) - truth).square().mean().sqrt())

    errors = [error(columns) for columns in (4, 12, 24)]
    assert errors[0] > 1.5 * errors[1] > 2 * errors[2] > 0
    assert error(50) < 1e-4 * abs(truth)


def test_the_sketch_tells_its_own_error():
    """Jackknife over blocks of Psi: two standard errors hold the truth in at least 95 % of seeds."""
    g = gradients(rank=2, noise=1.0)
    truth, stated, spread = float(gram(g)[0, 1]), [], []
    for seed in range(120):
        inner = inner_products(sketch(g, 12, seed), 4)
        spread.append(float(inner.value[0, 1]))
        stated.append(error_of(inner.left_out[:, 0, 1].tolist()))
    assert np.mean(np.abs(np.array(spread) - truth) <= 2 * np.array(stated)) >= 0.95
    assert np.median(stated) < 4 * np.std(spread)


def test_the_reconstruction_tells_its_own_error():
    """The a posteriori estimate of ||Q C - G||^2 against the true one, in the mean over seeds and within half of it for each."""
    g = gradients(rank=3, noise=0.3)
    whole, estimated, true = g.sum(0), [], []
    for seed in range(60):
        sketches = sketch(g, 16, seed)
        inner = inner_products(sketches, 6)
        basis = sketches.basis(6)
        estimated.append(inner.inflation * float(inner.missed.sum()))
        true.append(float((basis @ sketches.coefficients(basis).sum(0) - whole).square().sum()))
    assert np.mean(estimated) == pytest.approx(np.mean(true), rel=0.05)
    assert np.mean(np.abs(np.array(estimated) / np.array(true) - 1) < 0.5) >= 0.95


def test_directions_follow_from_the_wanted_error():
    assert [Sizes(columns).directions for columns in (4, 8, 16, 32, 64)] == [1, 4, 8, 16, 32]
    assert error_factor(1, 4, 6) <= 4 < error_factor(2, 4, 6)
    assert error_factor(32, 64, 96) <= error_factor(18, 32, 48) <= 4 < error_factor(19, 32, 48)
    assert error_factor(8, 8, 12) == float("inf")


def test_mean_error_of_a_reconstruction_is_within_the_stated_factor():
    g = gradients(rank=0, noise=1.0) * (torch.arange(1, N + 1).float() ** -1.0)
    whole = g.sum(0)
    best = float(torch.linalg.svdvals(whole)[4:].square().sum())
    errors = []
    for seed in range(60):
        left, values, right = sketch(g, 10, seed).reconstruct(4)
        errors.append(float((left * values @ right.T - whole).square().sum()))
    assert np.mean(errors) <= error_factor(4, 10, 15) * best


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


def test_test_matrices_keep_energies_in_the_mean_and_are_the_identity_when_complete():
    seen = torch.stack([(q := gaussian(30, 7, torch.Generator().manual_seed(seed))) @ q.T for seed in range(400)])
    within_standard_errors(seen[:, 3, 3], 1.0)
    within_standard_errors(seen[:, 3, 8], 0.0)
    assert torch.equal(gaussian(5, 9, torch.Generator()), torch.eye(5))


@pytest.mark.parametrize("tokens", [3, 200])
def test_squared_norm_equals_the_dense_one_on_both_routes(tokens):
    x, d = torch.randn(tokens, 12), torch.randn(tokens, 9)
    torch.testing.assert_close(squared_norm(x, d), (d.T @ x).double().square().sum(), rtol=1e-5, atol=0)


def test_jackknife_of_a_mean_is_its_standard_error():
    values = np.random.default_rng(0).normal(size=12)
    left_out = [np.delete(values, k).mean() for k in range(12)]
    assert jackknife(left_out) == pytest.approx(values.std(ddof=1) / 12**0.5)


def test_errors_of_few_replicates_are_widened_by_students_t():
    values = np.random.default_rng(0).normal(size=6).tolist()
    assert error_of(values) / jackknife(values) == pytest.approx(2.5706 / 1.96, rel=2e-3)
