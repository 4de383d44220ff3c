"""The filter against brute-force minimisation, planted problems, and its sketched form against the matrix that it stands for."""

import pytest
import torch

from lora_select.errors import InputError
from lora_select.retention.filter import Pair, filtered, moved, nystrom, pairs, spread
from lora_select.retention.moments import InputSums, Moments


def covariance(n, seed, *, decay=1.0):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64))[0]
    values = torch.arange(1, n + 1, dtype=torch.float64) ** -decay
    return basis * values @ basis.T


def factors(m, n, r, seed=0):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(r, n, generator=generator, dtype=torch.float64)
    return a, torch.randn(m, r, generator=generator, dtype=torch.float64)


def brute(d0, zt, zr, strength):
    """argmin ||(D - D0) Zt^{1/2}||^2 + lambda ||D Zr^{1/2}||^2 over all m n entries, as one least-squares problem."""
    roots = [torch.linalg.cholesky(z) for z in (zt, strength * zr)]
    left = torch.cat([torch.kron(torch.eye(len(d0), dtype=d0.dtype), root.T.contiguous()) for root in roots])
    right = torch.cat([(d0 @ roots[0]).flatten(), torch.zeros(d0.numel(), dtype=d0.dtype)])
    return torch.linalg.lstsq(left, right[:, None]).solution.view_as(d0)


@pytest.mark.parametrize("strength", [0.03, 1.0, 20.0])
def test_it_is_the_minimiser_over_all_matrices_and_keeps_b(strength):
    zt, zr = covariance(9, 1), covariance(9, 2, decay=0.5)
    a, b = factors(6, 9, 2)
    kept = filtered(a, Pair(zt, zr), strength)
    torch.testing.assert_close(b @ kept, brute(b @ a, zt, zr, strength), rtol=1e-8, atol=1e-10)
    assert torch.linalg.matrix_rank(b @ kept) == 2


def test_stacked_layers_of_one_input_are_filtered_as_each_alone():
    pair = Pair(covariance(9, 1), covariance(9, 2))
    first, _ = factors(6, 9, 2)
    second, _ = factors(6, 9, 3, seed=5)
    both = filtered(torch.cat([first, second]), pair, 0.7)
    torch.testing.assert_close(both[:2], filtered(first, pair, 0.7))
    torch.testing.assert_close(both[2:], filtered(second, pair, 0.7))


def test_where_task_and_reference_are_alike_it_is_scaling_and_kappa_is_one():
    z = covariance(9, 1)
    a, b = factors(6, 9, 2)
    torch.testing.assert_close(filtered(a, Pair(z, 2 * z), 0.25), a / 1.5)
    assert spread(a, b, Pair(z, 2 * z)).kappa == pytest.approx(1.0, abs=1e-9)


def test_kappa_is_that_of_the_generalised_eigenvalues_and_orders_the_gain_over_scaling():
    """A direction that only the task uses and one that only the reference uses: the filter keeps one and drops the other."""
    a, b = torch.tensor([[1.0, 1.0]], dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64)
    gains = []
    for gap in (1.0, 4.0, 25.0):
        pair = Pair(torch.diag(torch.tensor([gap, 1.0])).double(), torch.diag(torch.tensor([1.0, gap])).double())
        mu, weight = torch.tensor([gap, 1 / gap]).double(), torch.tensor([1.0, gap]).double()
        mean, inverse = ((weight * part).sum() / weight.sum() for part in (mu, 1 / mu))
        measured = spread(a, b, pair)
        assert measured.kappa == pytest.approx(float((mean * inverse).sqrt()))
        kept = filtered(a, pair, 1e-4 / gap)
        lost = float(spread(kept - a, b, pair).task)
        share = 1 - (lost / measured.task) ** 0.5  # scaling that distorts the task as much
        gains.append((1 - spread(kept, b, pair).reference / measured.reference) / (1 - share**2))
        assert gains[-1] == pytest.approx(measured.kappa, rel=0.01)
    assert gains[0] < gains[1] < gains[2]


def test_zero_strength_changes_nothing_and_a_large_one_leaves_nothing():
    pair = Pair(covariance(9, 1), covariance(9, 2))
    a, _ = factors(6, 9, 2)
    assert torch.equal(filtered(a, pair, 0.0), a)
    assert filtered(a, pair, 1e9).abs().max() < 1e-6


def rows(count, width, seed, *, rank, noise=0.05):
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(rank, width, generator=generator)
    return torch.randn(count, rank, generator=generator) @ basis + noise * torch.randn(
        count, width, generator=generator
    )


def sums(x, omega=None):
    width = x.shape[1]
    made = InputSums(torch.zeros(width, width if omega is None else omega.shape[1], dtype=torch.float64), 0.0, 0, omega)
    made.add(x)
    return made


def moments(one):
    return Moments({"layer": one}, {"layer": "layer"})


def test_a_sketch_gives_what_its_matrix_gives_and_comes_close_to_the_exact_one():
    width, columns = 60, 24
    omega = torch.linalg.qr(torch.randn(width, columns, generator=torch.Generator().manual_seed(3)))[0]
    task, reference = rows(400, width, 1, rank=8), rows(400, width, 2, rank=8)
    [pair] = pairs(moments(sums(task, omega)), [moments(sums(reference, omega))], ridge=1e-2)[0].values()
    dense = []
    for x in (task, reference):
        vectors, values, rest = nystrom(sums(x, omega))
        dense.append(vectors * values @ vectors.T + rest * torch.eye(width, dtype=torch.float64))
        assert float(dense[-1].trace()) == pytest.approx(float(x.square().sum()) / 400, rel=1e-3)
    dense[0] += 1e-2 * float(task.square().sum()) / 400 / width * torch.eye(width, dtype=torch.float64)
    a, b = factors(5, width, 3)
    whole = Pair(*dense)
    for strength in (0.1, 2.0):
        torch.testing.assert_close(filtered(a, pair, strength), filtered(a, whole, strength), rtol=1e-5, atol=1e-5)
    assert spread(a, b, pair).kappa == pytest.approx(spread(a, b, whole).kappa, rel=1e-4)
    [exact] = pairs(moments(sums(task)), [moments(sums(reference))], ridge=1e-2)[0].values()
    near, true = filtered(a, pair, 1.0), filtered(a, exact, 1.0)
    assert (near - true).norm() < 0.15 * true.norm()


def test_what_an_update_moves_is_the_mean_square_of_what_it_adds_to_the_outputs():
    width = 60
    omega = torch.linalg.qr(torch.randn(width, 24, generator=torch.Generator().manual_seed(3)))[0]
    x, (a, b) = rows(400, width, 1, rank=8), factors(5, width, 3)
    expected = float((x @ (b @ a).T.to(x)).square().sum()) / 400
    assert moved(a, b, sums(x)) == pytest.approx(expected, rel=1e-5)
    assert moved(b @ a, None, sums(x)) == pytest.approx(expected, rel=1e-5)
    assert moved(a, b, sums(x, omega)) == pytest.approx(expected, rel=0.05)


def test_sets_of_reference_text_count_the_same_whatever_their_size():
    few, many = rows(80, 8, 1, rank=8), rows(800, 8, 2, rank=8)
    task = moments(sums(rows(100, 8, 3, rank=8)))
    [pair] = pairs(task, [moments(sums(few)), moments(sums(many))])[0].values()
    expected = (few.T @ few / 80 + many.T @ many / 800).double() / 2
    torch.testing.assert_close(pair.reference, expected, rtol=1e-5, atol=1e-6)


def test_an_isotropic_prior_shrinks_what_no_reference_text_used():
    task, reference = rows(100, 8, 3, rank=8), rows(100, 8, 2, rank=8)
    reference[:, 0] = 0
    a = torch.zeros(1, 8, dtype=torch.float64)
    a[0, 0] = 1
    without, with_prior = (
        filtered(a, pairs(moments(sums(task)), [moments(sums(reference))], prior=prior)[0]["layer"], 3.0)
        for prior in (0.0, 0.5)
    )
    assert with_prior[0, 0] < 0.9 * without[0, 0]


def test_too_few_tokens_raise_the_ridge_or_are_refused():
    plenty = moments(sums(rows(200, 64, 1, rank=8)))
    some = moments(sums(rows(32, 64, 2, rank=8)))
    assert pairs(plenty, [plenty])[1:] == ((), {})
    found, notes, left = pairs(some, [plenty])
    [pair] = found.values()
    assert left == {}
    assert "layer" in notes[0]
    raised = pair.task.diagonal().mean() - some.sums["layer"].energy / 32 / 64
    assert float(raised) == pytest.approx(2e-4 * some.sums["layer"].energy / 32 / 64, rel=1e-2)
    with pytest.raises(InputError, match="7 tokens are too few .* layer, which is 64 wide"):
        pairs(moments(sums(rows(7, 64, 2, rank=8))), [plenty])


def test_a_layer_of_too_few_tokens_is_left_out_and_the_others_are_filtered():
    plenty, few = rows(200, 64, 1, rank=8), rows(7, 64, 2, rank=8)
    task = Moments({"a": sums(plenty), "expert": sums(few)}, {"a": "a", "expert": "expert"})
    found, _, left = pairs(task, [Moments({"a": sums(plenty), "expert": sums(plenty)}, {"a": "a", "expert": "expert"})])
    assert set(found) == {"a"}
    assert "7 tokens are too few" in left["expert"]


def test_a_reference_that_lacks_a_layer_is_said_and_one_of_another_model_is_refused():
    one, other = rows(200, 16, 1, rank=8), rows(200, 16, 2, rank=8)
    task = Moments({"a": sums(one), "b": sums(other)}, {"a": "a", "b": "b"})
    some = Moments({"a": sums(other)}, {"a": "a"})
    found, notes, _ = pairs(task, [task, some])
    assert set(found) == {"a", "b"}
    assert "first b" in notes[0]
    torch.testing.assert_close(found["b"].reference, other.T.double() @ other.double() / 200, rtol=1e-5, atol=1e-5)
    found, _, left = pairs(task, [some])
    assert (set(found), set(left)) == ({"a"}, {"b"})
    with pytest.raises(InputError, match="one model"):
        pairs(task, [Moments({"a": sums(one[:, :8])}, {"a": "a"})])
    with pytest.raises(InputError, match="no layer can be filtered: no reference text reached it"):
        pairs(task, [Moments({"z": sums(one)}, {"z": "z"})])


def test_a_second_moment_that_is_not_positive_even_with_its_ridge_is_refused_by_name():
    task = sums(rows(100, 8, 3, rank=8))
    task.products[0, 0] = -1.0
    with pytest.raises(InputError, match="layer"):
        pairs(moments(task), [moments(sums(rows(100, 8, 2, rank=8)))])
