"""Small dense linear algebra shared by the spectral modules."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def top_left(tall: Tensor, q: int) -> Tensor:
    """Leading `q` left singular vectors (m, q) of a tall matrix (m, k), through the k x k Gram matrix in float64.

    Forming the Gram matrix squares the condition number: directions below 1e-7 of the largest value are noise, which is
    far below sampling error here. Re-orthonormalised, so the columns are orthonormal whatever the rank.
    """
    q = min(q, *tall.shape)
    wide = tall.double()
    _, vectors = torch.linalg.eigh(wide.T @ wide)
    basis, _ = torch.linalg.qr(wide @ vectors[:, -q:].flip(1))
    return basis.to(tall.dtype)


def pseudo_inverse(tall: Tensor) -> Tensor:
    """Moore-Penrose inverse (q, l) of a matrix (l, q) with l >= q, in float64 and back."""
    return torch.linalg.pinv(tall.double()).to(tall.dtype)


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
