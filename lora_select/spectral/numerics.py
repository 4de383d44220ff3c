"""Small dense linear algebra shared by the spectral modules."""

import math
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

RELATIVE = 1e-10
"""Eigenvalues of a Gram matrix below this share of the largest carry no direction in float64."""


def top_left(tall: Tensor, q: int) -> Tensor:
    """Leading `q` left singular vectors (..., m, q) of tall matrices (..., m, k), through the k x k Gram matrix in float64.

    Forming the Gram matrix squares the condition number: directions below 1e-5 of the largest value are taken from a QR
    decomposition, so the columns are orthonormal whatever the rank.
    """
    q = min(q, *tall.shape[-2:])
    wide = tall.double()
    energies, vectors = torch.linalg.eigh(wide.mT @ wide)
    kept, directions = energies[..., -q:].flip(-1), wide @ vectors[..., -q:].flip(-1)
    if bool((kept[..., -1] > RELATIVE * kept[..., 0]).all()):
        basis = directions / kept.sqrt()[..., None, :]
    else:
        basis, _ = torch.linalg.qr(directions)
    return basis.to(tall.dtype)


def orthonormal(tall: Tensor) -> Tensor:
    """An orthonormal basis (m, k) of the columns of a tall matrix, by Cholesky's QR in float64, or Householder's where it fails."""
    wide = tall.double()
    factor, failed = torch.linalg.cholesky_ex(wide.T @ wide)
    diagonal = factor.diagonal()
    if bool(failed) or bool(diagonal.min() < RELATIVE**0.5 * diagonal.max()):
        return torch.linalg.qr(tall)[0]
    return torch.linalg.solve_triangular(factor.T, wide, upper=True, left=False).to(tall.dtype)


def small_svd(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a wide matrix (q, n) with few rows, through its q x q Gram matrix in float64: left (q, q), values (q,), right (n, q).

    Values below 1e-7 of the largest are rounding noise; their right vectors are completed to an orthonormal set.
    """
    rows = wide.double()
    energies, left = torch.linalg.eigh(rows @ rows.T)
    energies, left = energies.flip(0), left.flip(1)
    right = rows.T @ left
    if bool(energies[-1] > RELATIVE * energies[0]):
        right = right / energies.sqrt()
    else:
        right, triangular = torch.linalg.qr(right)
        right = right * torch.sign(torch.diagonal(triangular))
    return left.to(wide.dtype), energies.clamp(min=0).sqrt().to(wide.dtype), right.to(wide.dtype)


def squared_norm(x: Tensor, d: Tensor) -> Tensor:
    """||d^T x||_F^2 exactly, without forming d^T x (m, n); a float64 scalar.

    By Gram matrices, sum (x x^T) * (d d^T), O(tokens^2 (m + n)); for long batches by column blocks, O(tokens m n).

    Args:
        x: (tokens, n) inputs.
        d: (tokens, m) output gradients.

    Example:
        >>> x, d = torch.ones(3, 4), torch.ones(3, 5)
        >>> squared_norm(x, d).item()   # d^T x is 3 everywhere
        180.0
    """
    tokens, n, m = x.shape[0], x.shape[1], d.shape[1]
    if tokens * (m + n) <= m * n:
        return ((x @ x.T) * (d @ d.T)).sum(dtype=torch.float64)
    block = max(1, min(256, n // 4))
    blocks = [(d.T @ x[:, start : start + block]).square().sum(dtype=torch.float64) for start in range(0, n, block)]
    return torch.stack(blocks).sum()


def jackknife(replicates: Sequence[float]) -> float:
    """Standard error from leave-one-out values: sqrt((K-1)/K sum (t_k - mean)^2). No unit of its own.

    References:
        Efron, Stein (1981), *The jackknife estimate of variance*: biased upwards, so the error is not understated.
    """
    count = len(replicates)
    mean = math.fsum(replicates) / count
    return math.sqrt((count - 1) / count * math.fsum((value - mean) ** 2 for value in replicates))


def error_of(replicates: Sequence[float]) -> float:
    """Jackknife standard error, widened so that two of them hold the truth in 95 % of cases also for few replicates."""
    return _widening(len(replicates)) * jackknife(replicates)


@cache
def _widening(count: int) -> float:
    """The 97.5 % quantile of Student's t with K - 1 degrees of freedom over 1.96, by its expansion in 1 / (K - 1).

    References:
        Abramowitz, Stegun (1964), *Handbook of Mathematical Functions*, 26.7.5.
    """
    freedom, z = count - 1, 1.959964
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return 1 + math.fsum(term / freedom ** (power + 1) for power, term in enumerate(terms)) / z
