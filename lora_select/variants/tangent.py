"""The tangent map of an adapter, theta -> W(theta): matrix-free, with its adjoint."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from torch import Tensor


@final
@dataclass(frozen=True)
class TangentOperator:
    """J = dW/dtheta at a point: from parameter directions to updates of W (m, n).

    Attributes:
        weight_shape: (m, n).
        parameter_shapes: of each trained parameter, by PEFT's name (`lora_A`, `lora_B`, `lora_magnitude_vector`).
        apply: a direction for every parameter -> J direction, (m, n).
        apply_adjoint: a gradient G (m, n) -> J^T G, the gradient of every parameter.
    """

    weight_shape: tuple[int, int]
    parameter_shapes: "Mapping[str, tuple[int, ...]]"
    apply: "Callable[[Mapping[str, Tensor]], Tensor]"
    apply_adjoint: "Callable[[Tensor], dict[str, Tensor]]"

    def matvec(self, direction: "Mapping[str, Tensor]") -> "Tensor":
        """J direction, (m, n)."""
        return self.apply(direction)

    def rmatvec(self, gradient: "Tensor") -> "dict[str, Tensor]":
        """J^T gradient, by parameter name."""
        return self.apply_adjoint(gradient)

    def dense(self, like: "Tensor") -> "Tensor":
        """J as a matrix (m n, parameters) in the order of `parameter_shapes`; for tests, on tiny layers.

        Args:
            like: any tensor with the dtype and device that is wanted.
        """
        import torch

        columns = []
        for name, shape in self.parameter_shapes.items():
            count = math.prod(shape)
            step = {other: like.new_zeros(count, *size) for other, size in self.parameter_shapes.items()}
            step[name] = torch.eye(count, dtype=like.dtype, device=like.device).reshape(count, *shape)
            columns.append(torch.func.vmap(self.matvec)(step).flatten(1).T)
        return torch.cat(columns, 1)


def bilinear(factor_a: "Tensor", factor_b: "Tensor", scale: float) -> TangentOperator:
    """Tangent of W + s B A: J(dA, dB) = s (dB A + B dA); J^T G = (s B^T G, s G A^T).

    Args:
        factor_a: A, (r, n).
        factor_b: B, (m, r).
        scale: s, no unit.
    """
    r, n = factor_a.shape
    m = factor_b.shape[0]
    return TangentOperator(
        weight_shape=(m, n),
        parameter_shapes={"lora_A": (r, n), "lora_B": (m, r)},
        apply=lambda step: scale * (step["lora_B"] @ factor_a + factor_b @ step["lora_A"]),
        apply_adjoint=lambda g: {"lora_A": scale * (factor_b.T @ g), "lora_B": scale * (g @ factor_a.T)},
    )


def linearised(
    weight_of: "Callable[[Mapping[str, Tensor]], Tensor]", theta: "Mapping[str, Tensor]", trained: tuple[str, ...]
) -> TangentOperator:
    """Tangent of theta -> W(theta) at `theta` by automatic differentiation: J by forward mode, J^T by reverse mode.

    What `weight_of` detaches is a constant in both.

    Args:
        weight_of: W(theta), (m, n), written with torch.
        theta: every tensor that `weight_of` reads.
        trained: the names to differentiate in; the others are constants.
    """
    import torch

    constants = {name: value for name, value in theta.items() if name not in trained}
    point = {name: theta[name].detach() for name in trained}

    def weight(parameters: "dict[str, Tensor]") -> "Tensor":
        return weight_of({**constants, **parameters})

    image, adjoint = torch.func.vjp(weight, point)[:2]
    m, n = image.shape
    return TangentOperator(
        weight_shape=(m, n),
        parameter_shapes={name: tuple(value.shape) for name, value in point.items()},
        apply=lambda step: torch.func.jvp(weight, (point,), ({name: step[name] for name in trained},))[1],
        apply_adjoint=lambda g: adjoint(g)[0],
    )


def projected_energy(operator: TangentOperator, gradient: "Tensor", iterations: int = 50) -> float:
    """Share ||P_T G||^2 / ||G||^2 of a gradient in the range T of the operator, by conjugate gradients on J^T J.

    The normal equations J^T J s = J^T G are singular along gauge directions of the factors, and consistent, so the
    iteration converges on the range; P_T G = J s.

    Args:
        operator: J.
        gradient: G, (m, n), float64 for full accuracy.
        iterations: at most this many products with J and J^T.

    Returns:
        In [0, 1], no unit.

    References:
        Hestenes, Stiefel (1952), *Methods of conjugate gradients*, section 10 (CGNR).
    """
    residual = gradient.clone()
    normal = operator.rmatvec(residual)
    direction = dict(normal)
    first = energy = _dot(normal, normal)
    for _ in range(iterations):
        if energy <= 1e-24 * first or energy == 0.0:
            break
        image = operator.matvec(direction)
        step = energy / float(image.square().sum())
        residual = residual - step * image
        normal = operator.rmatvec(residual)
        previous, energy = energy, _dot(normal, normal)
        direction = {name: normal[name] + (energy / previous) * direction[name] for name in normal}
    return 1.0 - float(residual.square().sum() / gradient.square().sum())


def _dot(left: "Mapping[str, Tensor]", right: "Mapping[str, Tensor]") -> float:
    return sum(float((left[name] * right[name]).sum()) for name in left)
