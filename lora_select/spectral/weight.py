"""Leading and trailing singular systems of a weight: randomised range finder, and block inverse iteration on the Gram matrix."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lora_select.spectral.numerics import orthonormal, small_svd

EXACT_WIDTH = 128
OVERSAMPLING = 8
MINOR_OVERSAMPLING = 16
GRAM_PRODUCTS = 3
INVERSE_ITERATIONS = 3
RIDGE = 1e-7
"""Of the sum of squares of W: above the rounding of a float32 Gram matrix, so that its factorisation lives when W is singular."""


@final
@dataclass(frozen=True)
class WeightSystem:
    """A singular system of W (m, n): left (m, q), values (q,), right (n, q); energy ||W||_F^2.

    `values` descend for the leading system and ascend for the trailing one. `residual` is the largest norm of W v_i - s_i u_i and
    W^T u_i - s_i v_i over the kept triplets (one of the two is zero by construction), relative to the largest value: each s_i is
    within that of a true singular value.
    """

    left: Tensor
    values: Tensor
    right: Tensor
    energy: float
    residual: float

    @property
    def stable_rank(self) -> float:
        """||W||_F^2 / sigma_1^2, between 1 and the rank; 0 for a zero weight. No unit."""
        top = float(self.values[0]) ** 2
        return self.energy / top if top > 0 else 0.0


def narrow_gram(weight: Tensor) -> Tensor:
    """The smaller of W^T W and W W^T, float32: what both systems are found from, 2 min(m, n) m n flops."""
    w = weight.detach().float()
    return w.T @ w if w.shape[0] >= w.shape[1] else w @ w.T


def weight_system(weight: Tensor, count: int, seed: int, gram: Tensor | None = None) -> WeightSystem:
    """The `count` leading singular triplets of `weight`.

    Exact for a side of at most 128; else Halko, Martinsson and Tropp's range finder on the narrow side, with three products with the
    Gram matrix, whose values are low by a factor of about 1 - (sigma_{q+9} / sigma_q)^12 at worst. Directions below about 1e-3 of the
    largest value are rounding noise of the float32 products; their residuals say so.

    Args:
        weight: (m, n), any floating type.
        count: at most min(m, n) are returned.
        seed: of the test matrix.
        gram: of :func:`narrow_gram`, if it is there; products with it cost min(m, n)^2 in place of 2 m n a column.

    References:
        Halko, Martinsson, Tropp (2011), *Finding structure with randomness*, algorithm 4.4 and section 10.
    """
    w = weight.detach().float()
    tall = w.shape[0] >= w.shape[1]
    narrow = w if tall else w.T
    energy = _energy(w, gram)
    if min(w.shape) <= max(EXACT_WIDTH, count + OVERSAMPLING):
        outer, values, inner = torch.linalg.svd(narrow, full_matrices=False)
        inner = inner.T
    else:
        outer, values, inner = _randomised(narrow, count + OVERSAMPLING, seed, gram)
    outer, values, inner = outer[:, :count].contiguous(), values[:count], inner[:, :count].contiguous()
    residual = _relative(narrow.T @ outer - inner * values, values[:1])
    left, right = (outer, inner) if tall else (inner, outer)
    return WeightSystem(left, values, right, energy, residual)


def minor_system(weight: Tensor, count: int, seed: int, scale: Tensor, gram: Tensor | None = None) -> WeightSystem:
    """The `count` trailing singular triplets of `weight`, smallest first: where W does least.

    Block inverse iteration on the smaller Gram matrix in float64, from a random start; one factorisation serves all steps, so the
    cost is that of the Gram matrix, min(m, n) m n. Singular values below about 1e-8 of the largest are rounding noise.

    Args:
        weight: (m, n), any floating type.
        count: at most min(m, n) are returned.
        seed: of the start.
        scale: the largest singular value, (1,), to which the residual is relative.
        gram: of :func:`narrow_gram`, if it is there.

    References:
        Golub, Van Loan (2013), *Matrix Computations*, section 8.2.
    """
    w = weight.detach().float()
    tall = w.shape[0] >= w.shape[1]
    narrow = w if tall else w.T
    count = min(count, narrow.shape[1])
    energy = _energy(w, gram)
    ridged = (narrow_gram(w) if gram is None else gram).double()
    ridged.diagonal().add_(RIDGE * max(energy, 1e-30))
    factor = torch.linalg.cholesky(ridged)
    block = min(len(ridged), count + MINOR_OVERSAMPLING)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(ridged), block, generator=generator, dtype=torch.float64).to(w.device)
    for _ in range(INVERSE_ITERATIONS):
        basis = orthonormal(torch.cholesky_solve(basis, factor))
    seen = (narrow @ basis.float()).double()
    energies, rotation = torch.linalg.eigh(seen.T @ seen)
    values = energies[:count].clamp(min=0).sqrt().float()
    inner = (basis @ rotation[:, :count]).float().contiguous()
    outer = torch.linalg.qr(seen @ rotation[:, :count])
    outer = (outer.Q * torch.sign(torch.diagonal(outer.R))).float().contiguous()
    residual = _relative(narrow.T @ outer - inner * values, scale)
    left, right = (outer, inner) if tall else (inner, outer)
    return WeightSystem(left, values, right, energy, residual)


def column_system(weight: Tensor, leading: WeightSystem) -> WeightSystem:
    """Orthonormal bases of the first columns of W = Q R and of the first rows of R = Q^T W, nested by rank.

    Args:
        weight: (m, n), any floating type.
        leading: W's leading system; it says how many directions are wanted, and has W's energy.

    Returns:
        `left` Q (m, q) and `right` (n, q), whose first r columns span the first r rows of R; values are |R_kk|, in W's unit.
    """
    w = weight.detach().float()
    left, triangular = torch.linalg.qr(w[:, : len(leading.values)])
    right = torch.linalg.qr(w.T @ left).Q
    return WeightSystem(left, triangular.diagonal().abs(), right.contiguous(), leading.energy, 0.0)


def _relative(rest: Tensor, scale: Tensor) -> float:
    """The largest column norm over `scale`."""
    norms = torch.linalg.vector_norm(rest, dim=0)
    return float(norms.max() / scale.clamp(min=1e-30)) if len(norms) else 0.0


def _energy(w: Tensor, gram: Tensor | None) -> float:
    """||W||_F^2."""
    if gram is None:
        return float(torch.linalg.vector_norm(w, dtype=torch.float64)) ** 2
    return float(gram.diagonal().sum(dtype=torch.float64))


def _randomised(narrow: Tensor, columns: int, seed: int, gram: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Outer (M, columns), values, inner (N, columns) of a tall matrix (M, N)."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(narrow.shape[1], columns, generator=generator).to(narrow.device)
    for _ in range(GRAM_PRODUCTS):
        basis = orthonormal(narrow.T @ (narrow @ basis) if gram is None else gram @ basis)
    rotation, values, outer = small_svd((narrow @ basis).T)
    return outer, values, basis @ rotation
