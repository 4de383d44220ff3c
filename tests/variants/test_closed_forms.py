"""Tangent shares of selection.md section 4 against dense and conjugate-gradient projections."""

import contract
import pytest
import reference
import torch
from laws import within_standard_errors

from lora_select.operators import bilinear, projected_energy
from lora_select.spectral.view import LayerView
from lora_select.variant import ClosedForm
from lora_select.variants import VARIANTS, named

M, N, R = 10, 14, 4
NAMES = [variant.name for variant in VARIANTS if issubclass(variant, ClosedForm)]
NAMES.remove("lora_ga")  # it needs 2 r directions, more than this layer has: see test_lora_ga
BOUNDED = {"lora_one", "loftq"}
"""Displacements that are stated as upper bounds."""


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def view(weight, gradient, x) -> LayerView:
    """The numbers a variant sees, computed densely from one gradient."""
    u, s, vt = torch.linalg.svd(weight)
    z = torch.linalg.eigh(torch.as_tensor(reference.second_moment(x.numpy())))[1].flip(1)
    whole = gradient.square().sum()

    def share(part):
        return float(part.square().sum() / whole)

    rows = weight / weight.norm(dim=1, keepdim=True)
    v = vt.T
    minor_u, minor_v = u[:, M - R : M], v[:, M - R : M]
    gradient_u, _, gradient_vt = torch.linalg.svd(gradient, full_matrices=False)
    gradient_u, gradient_v = gradient_u[:, :R], gradient_vt[:R].T
    return LayerView(
        out_features=M,
        in_features=N,
        activation_energy=float(x.square().sum(1).mean()),
        output_energy=float((x @ weight.T).square().sum(1).mean()),
        weight_energy=float(weight.square().sum()),
        weight_values=tuple(s.tolist()),
        weight_input_energy=tuple((x @ v[:, :M]).square().mean(0).tolist()),
        activation_input_energy=tuple((x @ z).square().mean(0).tolist()),
        row_scale=share((gradient * rows).sum(1)),
        hadamard=N * share(gradient * rows),
        activation_subspace={R: share(gradient @ z[:, :R])},
        weight_left={R: share(u[:, :R].T @ gradient)},
        weight_right={R: share(gradient @ v[:, :R])},
        weight_both={R: share(u[:, :R].T @ gradient @ v[:, :R])},
        weight_minor_left={R: share(minor_u.T @ gradient)},
        weight_minor_right={R: share(gradient @ minor_v)},
        weight_minor_both={R: share(minor_u.T @ gradient @ minor_v)},
        gradient_left={R: share(gradient_u.T @ gradient)},
        gradient_right={R: share(gradient @ gradient_v)},
        gradient_both={R: share(gradient_u.T @ gradient @ gradient_v)},
    )


def start(variant, gradient, x, seed: int):
    """Weight and theta at the variant's start: PEFT's own, or the factors of its initialisation."""
    model = contract.build(variant, (M, N), seed)
    weight = contract.layer_of(model).get_base_layer().weight.detach()
    theta = {name: value.detach() for name, value in contract.theta_of(model, variant).items()}
    if variant.init in {"pissa", "milora"}:
        u, s, vt = torch.linalg.svd(weight, full_matrices=False)
        pick = slice(0, R) if variant.init == "pissa" else slice(M - R, M)
        root = s[pick].sqrt()
        theta = {"lora_A": root[:, None] * vt[pick], "lora_B": u[:, pick] * root}
    if variant.init == "lora_one":
        u, s, vt = torch.linalg.svd(gradient, full_matrices=False)
        root = (s[:R] / s[0] / 128).sqrt()
        theta = {"lora_A": root[:, None] * vt[:R], "lora_B": -u[:, :R] * root}
    if variant.init == "loftq":
        noise = normal(M, N, seed=seed)
        u, s, vt = torch.linalg.svd(0.093 * weight.norm() * noise / noise.norm(), full_matrices=False)
        theta = {"lora_A": s[:R].sqrt()[:, None] * vt[:R], "lora_B": u[:, :R] * s[:R].sqrt()}
    if variant.init == "eva":
        z = torch.linalg.eigh(torch.as_tensor(reference.second_moment(x.numpy())))[1].flip(1)
        theta["lora_A"] = z[:, :R].T.contiguous()
    return weight, theta


WEIGHT = contract.Base((M, N)).projection.weight.detach()


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_is_the_mean_dense_projection_over_starts(name):
    gradient, x = normal(M, N, seed=1) + 2 * normal(M, N), normal(50, N, seed=2)
    variant = named(name, R)
    numbers = view(WEIGHT, gradient, x)
    shares = []
    for seed in range(60):
        operator = variant.tangent(*start(variant, gradient, x, seed))
        shares.append(reference.projected_share(operator.dense(WEIGHT), gradient))
        if variant.tangent_share_spread(numbers) == 0:
            assert shares[0] == pytest.approx(variant.tangent_share(numbers), abs=1e-6)
            return
    # uniform entries are nearly, not exactly, a uniform row space, and HiRA's form is of first order: hence the slack
    slack = 0.2 * R / N if name == "hira" else 0.02
    assert sum(shares) / len(shares) == pytest.approx(variant.tangent_share(numbers), abs=slack)
    assert torch.tensor(shares).std() <= variant.tangent_share_spread(numbers)


def test_random_row_space_of_gaussian_factors_is_exact_in_the_mean():
    gradient, shares = normal(M, N), []
    for seed in range(300):
        operator = bilinear(normal(4, N, seed=seed + 10), torch.zeros(M, 4, dtype=torch.float64), 2.0)
        shares.append(projected_energy(operator, gradient))
    within_standard_errors(shares, 4 / N)


def test_both_factors_non_zero_leave_out_only_the_complements():
    gradient = normal(M, N)
    a, b = normal(3, N, seed=1), normal(M, 3, seed=2)
    p_a = torch.linalg.qr(a.T)[0]
    p_b = torch.linalg.qr(b)[0]
    rest = gradient - p_b @ (p_b.T @ gradient)
    rest = rest - (rest @ p_a) @ p_a.T
    expected = 1 - float(rest.square().sum() / gradient.square().sum())
    operator = bilinear(a, b, 0.5)
    assert projected_energy(operator, gradient) == pytest.approx(expected, abs=1e-9)
    assert reference.projected_share(operator.dense(gradient), gradient) == pytest.approx(expected, abs=1e-9)


def test_dora_of_white_noise_has_share_r_plus_one_over_n():
    noise = view(WEIGHT, normal(M, N), normal(50, N, seed=2))
    white = type(noise)(**{**noise.__dict__, "row_scale": 1 / N})
    assert named("dora", R).tangent_share(white) == pytest.approx((R + 1) / N)


@pytest.mark.parametrize("name", NAMES)
def test_displacement_is_that_of_a_sign_step(name):
    """Random signs in place of the gradient's, averaged: rms(dW x) / rms(W x). What has no gradient takes no step."""
    x = normal(50, N, seed=2) * 2
    variant = named(name, R)
    gradient = normal(M, N, seed=1)
    numbers = view(WEIGHT, gradient, x)
    moved = []
    fixed = variant.tangent_share_spread(numbers) == 0
    weight, theta = start(variant, gradient, x, 0)
    for seed in range(100):
        if not fixed:
            weight, theta = start(variant, gradient, x, seed)
        operator = variant.tangent(weight, theta)
        gradients = operator.rmatvec(normal(M, N, seed=5))
        step = {
            key: normal(*shape, seed=seed * 7 + len(key)).sign() * rate(variant, key) * float(gradients[key].any())
            for key, shape in operator.parameter_shapes.items()
        }
        moved.append((x @ operator.matvec(step).T).square().mean())
    expected = float((sum(moved) / len(moved) / (x @ WEIGHT.T).square().mean()).sqrt())
    if name in BOUNDED:
        assert expected <= variant.displacement(numbers) <= 3 * expected
        return
    assert variant.displacement(numbers) == pytest.approx(expected, rel=0.06)


def rate(variant, key: str) -> float:
    """Of LoRA+'s second group."""
    return variant.optimizer.get("lora_b_ratio", 1.0) if key == "lora_B" else 1.0
