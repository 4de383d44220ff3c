"""Leading and trailing singular systems of a weight: randomised range finder, and block inverse iteration on the Gram matrix."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lora_select.spectral.numerics import orthonormal, small_svd

EXACT_WIDTH = 128
OVERSAMPLING = 8
MINOR_OVERSAMPLING = 16
POWER_ITERATIONS = 2
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


def weight_system(weight: Tensor, count: int, seed: int) -> WeightSystem:
    """The `count` leading singular triplets of `weight`.

    Exact for a side of at most 128; else Halko, Martinsson and Tropp's range finder with two power iterations, whose
    values are low by a factor of about 1 - (sigma_{q+9} / sigma_q)^10 at worst.

    Args:
        weight: (m, n), any floating type.
        count: at most min(m, n) are returned.
        seed: of the test matrix.

    References:
        Halko, Martinsson, Tropp (2011), *Finding structure with randomness*, algorithm 4.4 and section 10.
    """
    w = weight.detach().float()
    energy = float(torch.linalg.vector_norm(w, dtype=torch.float64)) ** 2
    if min(w.shape) <= max(EXACT_WIDTH, count + OVERSAMPLING):
        left, values, right = torch.linalg.svd(w, full_matrices=False)
        right = right.T
    else:
        left, values, right = _randomised(w, count + OVERSAMPLING, seed)
    left, values, right = left[:, :count].contiguous(), values[:count], right[:, :count].contiguous()
    return WeightSystem(left, values, right, energy, _relative(w @ right - left * values, values[:1]))


def minor_system(weight: Tensor, count: int, seed: int, scale: Tensor) -> WeightSystem:
    """The `count` trailing singular triplets of `weight`, smallest first: where W does least.

    Block inverse iteration on the smaller Gram matrix in float64, from a random start; one factorisation serves all steps, so the
    cost is that of the Gram matrix, min(m, n) m n. Singular values below about 1e-8 of the largest are rounding noise.

    Args:
        weight: (m, n), any floating type.
        count: at most min(m, n) are returned.
        seed: of the start.
        scale: the largest singular value, (1,), to which the residual is relative.

    References:
        Golub, Van Loan (2013), *Matrix Computations*, section 8.2.
    """
    w = weight.detach().float()
    energy = float(torch.linalg.vector_norm(w, dtype=torch.float64)) ** 2
    tall = w.shape[0] >= w.shape[1]
    narrow = w if tall else w.T
    count = min(count, narrow.shape[1])
    gram = (narrow.T @ narrow).double()
    gram.diagonal().add_(RIDGE * max(energy, 1e-30))
    factor = torch.linalg.cholesky(gram)
    block = min(len(gram), count + MINOR_OVERSAMPLING)
    generator = torch.Generator().manual_seed(seed)
    basis = torch.randn(len(gram), block, generator=generator, dtype=torch.float64).to(gram.device)
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


def _relative(rest: Tensor, scale: Tensor) -> float:
    """The largest column norm over `scale`."""
    norms = torch.linalg.vector_norm(rest, dim=0)
    return float(norms.max() / scale.clamp(min=1e-30)) if len(norms) else 0.0


def _randomised(w: Tensor, columns: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    test = torch.randn(w.shape[1], columns, generator=generator).to(w.device)
    basis = orthonormal(w @ test)
    for _ in range(POWER_ITERATIONS):
        basis = orthonormal(w @ orthonormal(w.T @ basis))
    left, values, right = small_svd(basis.T @ w)
    return basis @ left, values, right
