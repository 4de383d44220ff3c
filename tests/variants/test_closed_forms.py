"""Tangent shares of docs/theory.md against dense and conjugate-gradient projections, displacements against sign steps."""

import closed_forms
import pytest
import reference
import torch
from closed_forms import NAMES, M, N, normal
from laws import within_standard_errors

from lora_select.variants.tangent import bilinear, projected_energy


@pytest.mark.parametrize("name", NAMES)
def test_closed_form_is_the_mean_dense_projection_over_starts(name):
    closed_forms.check_share(closed_forms.example(name))


@pytest.mark.parametrize("name", NAMES)
def test_displacement_is_that_of_a_sign_step(name):
    closed_forms.check_displacement(closed_forms.example(name))


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
