"""Largest curvature of the loss in a set of parameters: the top of the Gauss-Newton spectrum, by Lanczos."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor, nn

from lora_select.diagnostics.jacobian import ROUTES, Jacobian, Logits
from lora_select.errors import InputError
from lora_select.records import Curvature
from lora_select.spectral.stream import Progress, silent

PRODUCTS = 20
TOLERANCE = 0.01
"""Relative residual at which iteration stops: a learning rate needs no more."""
DISAGREEMENT = 0.05
"""Relative gap between v^T (J^T H J v) and (J v)^T H (J v) above which a route is not believed."""


def largest_curvature(
    logits: nn.Module,
    *,
    products: int = PRODUCTS,
    tolerance: float = TOLERANCE,
    seed: int = 0,
    route: str | None = None,
    progress: Progress | None = None,
) -> Curvature:
    """Largest eigenvalue of the Gauss-Newton matrix (1/N) sum_t J_t^T (diag(p_t) - p_t p_t^T) J_t of N labels' mean loss.

    J_t (C, p) is the Jacobian of label t's logits in the trainable parameters and p_t their softmax, so the matrix is the
    Hessian of the mean negative log-likelihood without the part in which the logits themselves curve; it is also Fisher's.
    It depends on the labels' places alone, not on the labels. Dropout is off; parameters and gradients are left as found.

    Three vectors of p numbers and the graph of one forward pass are held. Lanczos is run without re-orthogonalisation: the
    largest Ritz value and its residual stay right when orthogonality is lost, copies of it do no harm (Paige 1980).

    Args:
        logits: called without arguments gives the logits (N, C) at the N labels of one microbatch, C >= 2.
        products: most matrix-vector products, at least 1; 10 to 20 are usual.
        tolerance: stops when the residual is below this share of the value; no unit.
        seed: of the starting vector.
        route: name of the only route to take (`forward mode`, `double backward`, `finite differences`); by default the first
            that the kernels allow and whose products agree with the adjoint's.
        progress: called with products so far, the most, and a sentence.

    Returns:
        The Ritz value (nats per label, per squared unit of the parameters; never above the eigenvalue but for rounding), and its
        error: the residual ||A v - theta v||, within which an eigenvalue lies, plus the disagreement of J with its adjoint
        and what finite differences know of their own error.

    Raises:
        InputError: no trainable parameter, no label, fewer than two classes, or logits that are not finite.

    References:
        Schraudolph (2002), *Fast curvature matrix-vector products*; Paige (1980), *Accuracy and effectiveness of the Lanczos
        algorithm for the symmetric eigenproblem*; Parlett (1998), *The symmetric eigenvalue problem*, section 13.2.
    """
    if not any(parameter.requires_grad for parameter in logits.parameters()):
        raise InputError(
            "the curvature needs at least one parameter with requires_grad, and the model has none; add an adapter"
        )
    kinds = [kind for kind in ROUTES if route in (None, kind.route)]
    if not kinds:
        raise InputError(f"there is no route {route!r}; routes: {', '.join(kind.route for kind in ROUTES)}")
    dials = _Dials(products, tolerance, seed, progress or silent)
    with _evaluating(logits):
        for kind in kinds[:-1]:
            found = _attempt(kind, logits, dials)
            if found is not None:
                return found
        return _measure(kinds[-1], logits, dials)[0]


@final
@dataclass(frozen=True)
class _Dials:
    """What stays the same whichever route is taken."""

    products: int
    tolerance: float
    seed: int
    progress: Progress


@final
class _Operator:
    """v -> J^T H J v / N; `disagreement` is the largest gap between v^T (J^T H J v) and (J v)^T H (J v) so far."""

    def __init__(self, jacobian: Jacobian):
        self.jacobian = jacobian
        self.disagreement = 0.0
        self._p = torch.softmax(jacobian.logits.values, dim=1)

    def __call__(self, vector: Tensor) -> Tensor:
        """One product; vector (p,) of unit length."""
        moved = self.jacobian.times(vector)
        weighted = self._p * moved
        weighted = (weighted - self._p * weighted.sum(1, keepdim=True)) / len(moved)
        result = self.jacobian.logits.adjoint(weighted)
        self.disagreement = max(self.disagreement, abs(float(vector @ result) - float((moved * weighted).sum())))
        return result


def _attempt(kind: type[Jacobian], module: nn.Module, dials: _Dials) -> Curvature | None:
    """The measurement, or None where a kernel lacks a derivative or drops it in silence."""
    try:
        found, agreed = _measure(kind, module, dials)
    except torch.OutOfMemoryError:
        raise
    except (NotImplementedError, RuntimeError):  # torch has no narrower error for a missing derivative
        return None
    return found if agreed else None


def _measure(kind: type[Jacobian], module: nn.Module, dials: _Dials) -> tuple[Curvature, bool]:
    """The curvature by one route, and whether its products agreed with the adjoint's."""
    logits = Logits(module, kind.kernels)
    _check(logits.values)
    operator = _Operator(kind(logits))
    generator = torch.Generator().manual_seed(dials.seed)
    start = torch.randn(logits.count, generator=generator).to(logits.values)
    value, residual, used = lanczos(operator, start, dials)
    error = residual + operator.disagreement + 2 * operator.jacobian.error * value
    if not math.isfinite(value + error):
        raise InputError(
            f"the curvature is {value} with error {error} by {kind.route}: derivatives overflow in {logits.value.dtype}; "
            "load the base model in float32"
        )
    found = Curvature(value=value, error=error, products=used, route=kind.route, parameters=logits.count)
    return found, operator.disagreement <= DISAGREEMENT * value


def lanczos(operator: Callable[[Tensor], Tensor], start: Tensor, dials: _Dials) -> tuple[float, float, int]:
    """Largest Ritz value of a symmetric positive semi-definite operator, its residual norm, and the products used."""
    previous, current = torch.zeros_like(start), start / torch.linalg.vector_norm(start)
    diagonal: list[float] = []
    beside: list[float] = []
    value, residual = 0.0, 0.0
    tolerance = max(dials.tolerance, 10 * torch.finfo(start.dtype).eps)
    while len(diagonal) < dials.products:
        following = operator(current)
        if beside:
            following -= beside[-1] * previous
        diagonal.append(float(current @ following))
        following -= diagonal[-1] * current
        length = float(torch.linalg.vector_norm(following))
        value, last = _top(diagonal, beside)
        residual = length * last
        dials.progress(len(diagonal), dials.products, f"curvature {value:.3g}, residual {residual:.1g}")
        if not residual > tolerance * value:
            break
        beside.append(length)
        previous, current = current, following.div_(length)
    return value, residual, len(diagonal)


def _top(diagonal: Sequence[float], beside: Sequence[float]) -> tuple[float, float]:
    """Largest eigenvalue of the tridiagonal matrix, and the size of its eigenvector's last entry."""
    values, vectors = np.linalg.eigh(np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1))
    return float(values[-1]), abs(float(vectors[-1, -1]))


def _check(values: Tensor) -> None:
    if len(values) == 0:
        raise InputError(
            "none of the microbatch's tokens is a label, so there is no loss to curve; take rows with labels"
        )
    if values.shape[1] < 2:
        raise InputError(
            "the curvature is that of a softmax over at least 2 classes, got 1 output: a regression has none"
        )
    if not bool(torch.isfinite(values).all()):
        raise InputError(
            f"the logits of {int((~torch.isfinite(values)).any(1).sum())} of {len(values)} labels hold NaN or infinity; the "
            "weights overflow in this precision or are damaged: load the base model in float32 or check its files"
        )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Dropout off inside; every submodule's mode is put back after."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
