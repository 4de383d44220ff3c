import math

import numpy as np
import pytest
import reference
import torch
from torch import nn

from lora_select.diagnostics.curvature import largest_curvature
from lora_select.diagnostics.jacobian import ROUTES
from lora_select.errors import InputError
from lora_select.records import Curvature, from_json, to_json

NAMES = [kind.route for kind in ROUTES]


class LinearSoftmax(nn.Module):
    """Logits X W^T of N inputs, W (C, n) = 0: p = 1/C, so the matrix is (I/C - 11^T/C^2) (x) X^T X / N."""

    def __init__(self, inputs: torch.Tensor, classes: int):
        super().__init__()
        self.inputs = inputs
        self.weight = nn.Parameter(inputs.new_zeros(classes, inputs.shape[1]))

    def forward(self):
        return self.inputs @ self.weight.T


class Perceptron(nn.Module):
    """Two layers, dropout and a frozen bias; float64 and smooth."""

    def __init__(self, seed: int, labels: int = 7, kind=torch.float64):
        super().__init__()
        torch.manual_seed(seed)
        self.inputs = torch.randn(labels, 5, dtype=kind)
        self.first, self.last = nn.Linear(5, 6, dtype=kind), nn.Linear(6, 4, dtype=kind)
        self.first.bias.requires_grad_(False)
        self.dropout = nn.Dropout(0.5)

    def forward(self):
        return self.last(self.dropout(torch.tanh(self.first(self.inputs))))


def draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("route", NAMES)
def test_closed_form_of_a_linear_softmax(route):
    inputs = draw(0, 9, 6) * torch.arange(1, 7)
    found = largest_curvature(LinearSoftmax(inputs, 5), route=route, products=30, tolerance=1e-9)
    truth = float(torch.linalg.eigvalsh(inputs.T @ inputs / 9)[-1]) / 5
    assert found.value == pytest.approx(truth, rel=1e-6)
    assert abs(found.value - truth) <= found.error + 1e-12 * truth
    assert (found.route, found.parameters) == (route, 30)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("route", NAMES)
def test_equals_the_top_of_the_dense_matrix(route, seed):
    model = Perceptron(seed).eval()
    truth = np.linalg.eigvalsh(reference.gauss_newton(model))[-1]
    found = largest_curvature(model, route=route, products=40, tolerance=1e-8)
    assert found.value == pytest.approx(truth, rel=1e-7)
    assert found.error <= 1e-3 * truth


def test_the_bound_covers_the_truth_at_few_products():
    """Parameters' scales over three decades, so that ten products do not always converge."""
    inside, loose = [], []
    for seed in range(60):
        inputs = draw(seed, 20, 30) * torch.logspace(0, -1.5 * (seed % 3), 30, dtype=torch.float64)
        model = LinearSoftmax(inputs, 4)
        model.weight.data += 0.3 * draw(seed + 1000, 4, 30)
        truth = np.linalg.eigvalsh(reference.gauss_newton(model))[-1]
        found = largest_curvature(model, products=10, seed=seed)
        assert found.value <= truth * (1 + 1e-9)
        inside.append(truth - found.value <= found.error)
        loose.append(found.error / truth)
    assert np.mean(inside) >= 0.95
    assert np.median(loose) < 0.2


def test_more_products_bring_it_closer():
    inputs = draw(5, 60, 40)
    truth = float(torch.linalg.eigvalsh(inputs.T @ inputs / 60)[-1]) / 8
    gaps = [truth - largest_curvature(LinearSoftmax(inputs, 8), products=k, tolerance=0).value for k in (1, 4, 12, 24)]
    assert gaps == sorted(gaps, reverse=True)
    assert gaps[-1] < 1e-3 * truth


class NoForwardMode(torch.autograd.Function):
    """Twice differentiable in reverse, no dual numbers."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx, grad):
        [x] = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


class OnceOnly(NoForwardMode):
    """One derivative, like a fused kernel."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        [x] = ctx.saved_tensors
        return grad * (1 - x.tanh() ** 2)


class Silent(NoForwardMode):
    """A forward derivative that is wrong."""

    @staticmethod
    def forward(x):
        return x.tanh()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def jvp(ctx, tangent):
        return torch.zeros_like(tangent)


@pytest.mark.parametrize(
    ("kernel", "route"),
    [(NoForwardMode, "double backward"), (OnceOnly, "finite differences"), (Silent, "double backward")],
)
def test_a_kernel_without_the_derivative_gets_the_next_route(kernel, route):
    class Model(Perceptron):
        def forward(self):
            return self.last(kernel.apply(self.first(self.inputs)))

    plain = largest_curvature(Perceptron(0), products=30)
    found = largest_curvature(Model(0), products=30)
    assert plain.route == "forward mode"
    assert found.route == route
    assert found.value == pytest.approx(plain.value, rel=1e-3)


def test_finite_differences_know_their_error():
    for seed in range(10):
        single = largest_curvature(Perceptron(seed, kind=torch.float32), route="finite differences", products=40)
        truth = np.linalg.eigvalsh(reference.gauss_newton(Perceptron(seed, kind=torch.float32).eval()))[-1]
        assert abs(single.value - truth) <= single.error
        assert single.error < 0.1 * truth


def test_parameters_gradients_and_modes_are_left_alone():
    model = Perceptron(0).train()
    model.first.eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    largest_curvature(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert (model.training, model.first.training, model.dropout.training) == (True, False, True)


def test_a_start_that_moves_nothing_has_no_curvature():
    assert largest_curvature(LinearSoftmax(torch.zeros(3, 2), 4)).value == 0.0


def test_an_unused_parameter_counts_and_adds_nothing():
    model = Perceptron(0)
    model.spare = nn.Parameter(torch.ones(3, dtype=torch.float64))
    for route in NAMES:
        found = largest_curvature(model, route=route, products=30, tolerance=1e-8)
        assert found.value == pytest.approx(
            largest_curvature(Perceptron(0), products=30, tolerance=1e-8).value, rel=1e-6
        )
        assert found.parameters == 30 + 28 + 3


def test_the_record_is_json():
    found = largest_curvature(Perceptron(0))
    assert from_json(Curvature, to_json(found)) == found


def test_nothing_to_train():
    with pytest.raises(InputError, match="at least one parameter with requires_grad"):
        largest_curvature(Perceptron(0).requires_grad_(False))


def test_no_labels():
    with pytest.raises(InputError, match="none of the microbatch's tokens is a label"):
        largest_curvature(Perceptron(0, labels=0))


def test_one_class():
    with pytest.raises(InputError, match="at least 2 classes"):
        largest_curvature(LinearSoftmax(torch.ones(3, 2), 1))


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_non_finite_logits(bad):
    model = Perceptron(0)
    model.last.bias.data[1] = bad
    with pytest.raises(InputError, match="logits of 7 of 7 labels hold NaN or infinity"):
        largest_curvature(model)


def test_derivatives_that_are_not_finite():
    model = Perceptron(0)
    model.inputs[2, 1] = math.inf  # tanh is finite there, its derivative times infinity is not
    with pytest.raises(InputError, match=r"derivatives overflow in torch\.float64"):
        largest_curvature(model)


def test_unknown_route():
    with pytest.raises(InputError, match="routes: forward mode, double backward, finite differences"):
        largest_curvature(Perceptron(0), route="guess")
