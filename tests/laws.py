"""Laws that hold for every operator, used by name in tests."""

import torch

torch.set_num_threads(1)  # matrices here are tiny: a second thread on a busy machine costs tenfold


def check_adjoint(operator, seed: int = 0, rtol: float = 1e-12) -> None:
    """<J d, G> = <d, J^T G> for random d and G, in float64."""
    generator = torch.Generator().manual_seed(seed)
    direction = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in operator.parameter_shapes.items()
    }
    gradient = torch.randn(operator.weight_shape, generator=generator, dtype=torch.float64)
    left = (operator.matvec(direction) * gradient).sum()
    adjoint = operator.rmatvec(gradient)
    right = sum((direction[name] * adjoint[name]).sum() for name in direction)
    torch.testing.assert_close(left, right, rtol=rtol, atol=1e-12)


def check_dense(operator, seed: int = 0) -> None:
    """The dense form times a direction equals matvec; its transpose times a gradient equals rmatvec."""
    generator = torch.Generator().manual_seed(seed)
    like = torch.zeros((), dtype=torch.float64)
    dense = operator.dense(like)
    direction = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64)
        for name, shape in operator.parameter_shapes.items()
    }
    flat = torch.cat([direction[name].flatten() for name in operator.parameter_shapes])
    torch.testing.assert_close(dense @ flat, operator.matvec(direction).flatten(), rtol=1e-12, atol=1e-12)
    gradient = torch.randn(operator.weight_shape, generator=generator, dtype=torch.float64)
    adjoint = operator.rmatvec(gradient)
    stacked = torch.cat([adjoint[name].flatten() for name in operator.parameter_shapes])
    torch.testing.assert_close(dense.T @ gradient.flatten(), stacked, rtol=1e-12, atol=1e-12)


def within_standard_errors(values, truth: float, count: float = 4.0) -> None:
    """The mean of independent estimates is within `count` standard errors of the truth."""
    tensor = torch.as_tensor(values, dtype=torch.float64)
    error = tensor.std() / len(tensor) ** 0.5
    assert abs(tensor.mean() - truth) <= count * error, f"mean {tensor.mean():.6g}, truth {truth:.6g}, SE {error:.3g}"
