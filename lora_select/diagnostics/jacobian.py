"""Products with the Jacobian of a module's logits in its trainable parameters, by three routes, and with its adjoint.

A vector of parameters is one flat tensor (p,), in the order of `named_parameters`. The graph of one forward pass is kept as long
as the object lives: every adjoint product needs it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

AIMS = 4
"""Most changes of the step of a finite difference."""


@final
class Logits:
    """Logits f(theta) (N, C) of N labels over C classes, with their graph, and the trainable parameters theta.

    Args:
        module: called without arguments it gives the logits; its parameters that require a gradient are theta.
        kernels: a context inside which attention has the derivatives that the route needs.
    """

    def __init__(self, module: nn.Module, kernels: Callable[[], AbstractContextManager]):
        self.module, self.kernels = module, kernels
        named = [(name, parameter) for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.names = [name for name, _ in named]
        self.parameters = [parameter for _, parameter in named]
        self.count = sum(parameter.numel() for parameter in self.parameters)
        with torch.enable_grad(), kernels():
            self.value: Tensor = module()
        self.values = self.value.detach().to(torch.promote_types(self.value.dtype, torch.float32))

    def split(self, vector: Tensor) -> list[Tensor]:
        """A flat vector (p,) as tensors of the parameters' shapes and types."""
        parts = vector.split([parameter.numel() for parameter in self.parameters])
        return [part.view(p.shape).to(p.dtype) for part, p in zip(parts, self.parameters, strict=True)]

    def at(self, parameters: list[Tensor]) -> Tensor:
        """Logits at other parameters."""
        with self.kernels():
            return functional_call(self.module, dict(zip(self.names, parameters, strict=True)), ())

    def adjoint(self, cotangent: Tensor) -> Tensor:
        """J^T w (p,) for w (N, C)."""
        found = torch.autograd.grad(
            self.value, self.parameters, cotangent.to(self.value.dtype), retain_graph=True, allow_unused=True
        )
        return torch.cat(
            [
                (torch.zeros_like(p) if grad is None else grad).to(self.values.dtype).flatten()
                for p, grad in zip(self.parameters, found, strict=True)
            ]
        )


class Jacobian(ABC):
    """J = df / d theta. `error` is the largest relative error of a product so far, as far as the route can tell."""

    route: ClassVar[str]
    error: float = 0.0

    def __init__(self, logits: Logits):
        self.logits = logits

    @staticmethod
    def kernels() -> AbstractContextManager:
        """Attention as explicit products: the fused kernels know neither forward mode nor a second derivative."""
        return sdpa_kernel(SDPBackend.MATH)

    @abstractmethod
    def times(self, vector: Tensor) -> Tensor:
        """J v (N, C) for v (p,)."""


@final
class ForwardMode(Jacobian):
    """J v by dual numbers: one forward pass of about twice the work, without a graph."""

    route = "forward mode"

    def times(self, vector: Tensor) -> Tensor:
        """J v."""
        logits = self.logits
        with torch.no_grad(), forward_ad.dual_level():
            duals = [
                forward_ad.make_dual(p.detach(), t)
                for p, t in zip(logits.parameters, logits.split(vector), strict=True)
            ]
            tangent = forward_ad.unpack_dual(logits.at(duals)).tangent
        return torch.zeros_like(logits.values) if tangent is None else tangent.to(logits.values.dtype)


@final
class DoubleBackward(Jacobian):
    """J v = d/dw <J^T w, v>: two reverse passes; the graph of the first one is kept beside the forward pass's."""

    route = "double backward"

    def __init__(self, logits: Logits):
        super().__init__(logits)
        self._dummy = torch.zeros_like(logits.value, requires_grad=True)
        found = torch.autograd.grad(logits.value, logits.parameters, self._dummy, create_graph=True, allow_unused=True)
        self._linked = [index for index, grad in enumerate(found) if grad is not None and grad.requires_grad]
        self._gradients = [found[index] for index in self._linked]

    def times(self, vector: Tensor) -> Tensor:
        """J v."""
        parts = self.logits.split(vector)
        [product] = torch.autograd.grad(
            self._gradients, self._dummy, [parts[index] for index in self._linked], retain_graph=True
        )
        return product.to(self.logits.values.dtype)


@final
class Differences(Jacobian):
    """J v by central differences of the logits at two step sizes h and h/2, extrapolated: any kernel, four forward passes.

    (4 D(h/2) - D(h)) / 3 with D(h) = (f(theta + h v) - f(theta - h v)) / 2h. The error that is stated, |D(h) - D(h/2)| / 3
    over |D|, is that of D(h/2), the better of the two without the extrapolation. h moves the logits by about eps^(1/3) of
    their spread, where rounding (eps / h) and third derivatives (h^2) balance.
    """

    route = "finite differences"

    def __init__(self, logits: Logits):
        super().__init__(logits)
        spread = float(logits.values.std())
        self._wanted = _precision(logits) ** (1 / 3) * (spread if spread > 0 else 1.0)
        self._step = self._wanted

    @staticmethod
    def kernels() -> AbstractContextManager:
        """Any."""
        return nullcontext()

    def times(self, vector: Tensor) -> Tensor:
        """J v."""
        coarse = self._aimed(vector)
        fine = self._difference(vector, self._step / 2)
        size = float(torch.linalg.vector_norm(fine))
        if size > 0:
            self.error = max(self.error, float(torch.linalg.vector_norm(coarse - fine)) / (3 * size))
        return (4 * fine - coarse) / 3

    def _aimed(self, vector: Tensor) -> Tensor:
        """D(h), with h moved until the logits are displaced by about the wanted size: directions differ widely in effect."""
        coarse = self._difference(vector, self._step)
        for _ in range(AIMS):
            moved = float(coarse.square().mean().sqrt()) * self._step
            if moved == 0 or self._wanted / 4 <= moved <= self._wanted * 4:
                break
            self._step *= self._wanted / moved
            coarse = self._difference(vector, self._step)
        return coarse

    def _difference(self, vector: Tensor, step: float) -> Tensor:
        logits, kind = self.logits, self.logits.values.dtype
        parts = logits.split(vector)
        with torch.no_grad():
            ahead, behind = (
                logits.at([p + sign * step * t for p, t in zip(logits.parameters, parts, strict=True)]).to(kind)
                for sign in (1.0, -1.0)
            )
        return (ahead - behind) / (2 * step)


def _precision(logits: Logits) -> float:
    """Rounding of the coarsest type that takes part; float32 at best, in which norms are computed whatever the weights are."""
    kinds = {parameter.dtype for parameter in logits.module.parameters() if parameter.is_floating_point()}
    return max(torch.finfo(kind).eps for kind in kinds | {logits.value.dtype, torch.float32})


ROUTES: tuple[type[Jacobian], ...] = (ForwardMode, DoubleBackward, Differences)
"""In the order in which they are tried: least memory and exact first, what always works last."""
