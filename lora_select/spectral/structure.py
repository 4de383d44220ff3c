"""Structure scores: how much of the gradient's leading directions lies in scalings, rotations, Kronecker products and few entries of W.

Each fold has its own reconstruction Q_f C_f, so products across folds are free of noise in common; W and one row block of a
reconstruction are all that is ever held of size (m, n).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import Tensor

from lora_select.spectral.numerics import top_left
from lora_select.spectral.sketch import FoldSketches

Key = tuple[str, int]
"""Field of `LayerStatistics` and its rank or block size; 0 for a single number."""
Pair = tuple[np.ndarray, np.ndarray]
"""Inner products over folds (F, F): of the part, and of the whole that it is a share of."""

BLOCK_SIZES = (32,)
"""PEFT's default `oft_block_size`."""
SPARSE_RANK = 8
"""The sparse budget is that of a LoRA of this rank, 8 (m + n) entries: SHiRA's."""
CHUNK = 2**20
"""Entries of one row block."""
ENTRIES = 2**16
"""Of a larger layer about so many entries are looked at, in evenly spread rows: sums over entries need no more."""
LEAST_ROWS = 32
SAMPLE = 2**14
"""Entries that the size of the largest ones is estimated from."""
KRONECKER_STEPS = 4
HALVES = ((0, 1), (2, 3))
"""Folds that choose and folds that tell, and the other way round."""


@final
@dataclass(frozen=True)
class Reconstructions:
    """Q_f C_f of every fold: bases (F, m, q), coefficients (F, q, n)."""

    bases: Tensor
    coefficients: Tensor

    def of(self, folds: list[int]) -> "Reconstructions":
        """Those of some folds."""
        return Reconstructions(self.bases[folds], self.coefficients[folds])

    def inner(self) -> np.ndarray:
        """<Q_a C_a, Q_b C_b>, (F, F)."""
        left, right = self.bases.mT.flatten(0, 1), self.coefficients.flatten(0, 1)
        products = (left @ left.T) * (right @ right.T)
        folds, q = self.coefficients.shape[:2]
        return products.double().view(folds, q, folds, q).sum((1, 3)).cpu().numpy()

    def rows(self, start: int, end: int) -> Tensor:
        """Rows of all folds, (F, end - start, n)."""
        return self.bases[:, start:end] @ self.coefficients


def reconstructions(sketches: FoldSketches, q: int) -> Reconstructions:
    """Of the q leading directions of every fold, each with a basis of its own."""
    bases = top_left(sketches.y, q)
    inverse = torch.linalg.pinv((sketches.psi.T @ bases).double()).to(bases.dtype)
    return Reconstructions(bases, inverse @ sketches.z.mT)


def structure(weight: Tensor, parts: Reconstructions, *, scores: bool) -> dict[Key, Pair]:
    """Inner products of all scores of W (m, n) float32; of the row scalings alone, which DoRA's share reads, without `scores`."""
    whole, folds = parts.inner(), len(parts.bases)
    rows, columns = _norm(weight, 1), _norm(weight, 0)
    seen_right = (parts.coefficients.flatten(0, 1) @ weight.T).unflatten(0, (folds, -1))  # C_f W^T, (F, q, m)
    found: dict[Key, np.ndarray] = {("row_scale", 0): gram((seen_right.mT * parts.bases).sum(2) / rows)}
    if not scores:
        return {key: (part, whole) for key, part in found.items()}
    seen_left = (parts.bases.mT.flatten(0, 1) @ weight).unflatten(0, (folds, -1))  # Q_f^T W, (F, q, n)
    found[("column_scale", 0)] = gram((seen_left * parts.coefficients).sum(1) / columns)
    found |= {
        ("rotation", b): _rotation(weight, seen_left, parts.coefficients, b) for b in block_sizes(weight.shape[1])
    }
    found[("hadamard", 0)], sparse = _entrywise(weight, rows, parts)
    held_out = {("sparse", 0): sparse, ("kronecker", 0): _kronecker(parts)}
    masked = across_halves(whole)
    return {key: (part, whole) for key, part in found.items()} | {key: (part, masked) for key, part in held_out.items()}


def across_halves(products: np.ndarray) -> np.ndarray:
    """Only the products of the two folds of one half: what was chosen on the other half says nothing of any other pair."""
    kept = np.zeros_like(products)
    for one, other in HALVES:
        kept[one, other], kept[other, one] = products[one, other], products[other, one]
    return kept


def block_sizes(n: int) -> list[int]:
    """The block sizes that divide the width."""
    return [b for b in BLOCK_SIZES if n % b == 0]


def null_scores(m: int, n: int) -> Mapping[Key, float]:
    """The scores of a gradient that knows nothing of W: dimension of the subspace over m n; 1 for `hadamard`.

    For the leading Kronecker product, (sqrt(m1 n1) + sqrt(m2 n2))^2 / (m n): the edge of the spectrum of Van Loan's rearrangement.
    """
    (m1, m2), (n1, n2) = squarest(m), squarest(n)
    scores = {("row_scale", 0): 1 / n, ("column_scale", 0): 1 / m, ("hadamard", 0): 1.0}
    scores |= {("sparse", 0): min(1.0, SPARSE_RANK * (m + n) / (m * n))}
    scores |= {("kronecker", 0): min(1.0, ((m1 * n1) ** 0.5 + (m2 * n2) ** 0.5) ** 2 / (m * n))}
    return scores | {("rotation", b): (b - 1) / (2 * m) for b in block_sizes(n)}


def squarest(size: int) -> tuple[int, int]:
    """The factors of `size` nearest to its root, the smaller first, as LoKr's default takes them.

    Example:
        >>> squarest(576), squarest(1536), squarest(13)
        ((24, 24), (32, 48), (1, 13))
    """
    small = next(factor for factor in range(int(size**0.5), 0, -1) if size % factor == 0)
    return small, size // small


def gram(stack: Tensor) -> np.ndarray:
    """Inner products of the folds of (F, ...), float64."""
    flat = stack.flatten(1).double()
    return (flat @ flat.T).cpu().numpy()


def _norm(weight: Tensor, dim: int) -> Tensor:
    return torch.linalg.vector_norm(weight, dim=dim).clamp(min=1e-30)


def _rotation(weight: Tensor, seen: Tensor, coefficients: Tensor, b: int) -> np.ndarray:
    """Projections on {W S}, S skew and block-diagonal with blocks of b columns.

    In the eigenbasis U, lambda of each block's W_j^T W_j the normal equations are diagonal: with H = W_j^T G_j - G_j^T W_j the
    projection has energy sum_{p<q} (U^T H U)_pq^2 / (lambda_p + lambda_q).
    """
    folds, q, n = seen.shape
    blocks = n // b
    columns = weight.reshape(-1, blocks, b).permute(1, 2, 0)
    values, vectors = torch.linalg.eigh((columns @ columns.mT).double())
    left = seen.view(folds, q, blocks, b).permute(0, 2, 3, 1)
    right = coefficients.view(folds, q, blocks, b).transpose(1, 2)
    products = (left @ right).double()
    turned = vectors.mT @ (products - products.mT) @ vectors
    floor = 1e-12 * values.abs().max().clamp(min=1e-30)
    return gram(turned / (2 * (values[:, :, None] + values[:, None, :]).clamp(min=floor)).sqrt())


def _entrywise(weight: Tensor, norms: Tensor, parts: Reconstructions) -> tuple[np.ndarray, np.ndarray]:
    """Inner products of sqrt(n) G * W / ||w_i||, and of the largest entries chosen on the other half.

    Of a large layer evenly spread rows are looked at, and count for all: these are sums over rows.
    """
    m, n = weight.shape
    step = max(1, min(m * n // ENTRIES, m // LEAST_ROWS))
    parts = Reconstructions(parts.bases[:, ::step], parts.coefficients)
    scaled = weight[::step] * (n**0.5 / norms[::step, None])
    folds, rows = parts.bases.shape[:2]
    by_weight, largest = np.zeros((folds, folds)), np.zeros((folds, folds))
    thresholds: list[Tensor] = []
    for start in range(0, rows, size := max(1, CHUNK // n)):
        block = parts.rows(start, start + size)
        by_weight += gram(block * scaled[start : start + size])
        chosen = [(block[one] + block[other]).abs_() for one, other in HALVES]
        thresholds = thresholds or [_threshold(entries, m, n) for entries in chosen]
        for entries, threshold, (tell, check) in zip(chosen, thresholds, HALVES[::-1], strict=True):
            energy = float((block[tell] * block[check] * (entries >= threshold)).sum())
            largest[tell, check] += energy
            largest[check, tell] += energy
    return step * by_weight, step * largest


def _threshold(entries: Tensor, m: int, n: int) -> Tensor:
    """The size that the budget's share of a block's entries exceeds."""
    sample = entries.flatten()[:: max(1, entries.numel() // SAMPLE)]
    kept = max(1, round(len(sample) * min(1.0, SPARSE_RANK * (m + n) / (m * n))))
    return torch.kthvalue(sample, len(sample) - kept + 1).values


def _kronecker(parts: Reconstructions) -> np.ndarray:
    """Squares <A x B, G_f>, A x B the leading term of Van Loan's rearrangement of the other half's gradient.

    References:
        Van Loan, Pitsianis (1993), *Approximation with Kronecker products*.
    """
    folds, m, q = parts.bases.shape
    n = parts.coefficients.shape[2]
    lefts = parts.bases.mT.reshape(folds, q, *squarest(m))
    rights = parts.coefficients.reshape(folds, q, *squarest(n))
    found = np.zeros((folds, folds))
    for chosen, told in zip(HALVES, HALVES[::-1], strict=True):
        a, b = _leading_term(lefts[list(chosen)].flatten(0, 1), rights[list(chosen)].flatten(0, 1))
        values = [float((a * _contracted(lefts[fold], rights[fold], b)).sum(dtype=torch.float64)) for fold in told]
        found[told[0], told[1]] = found[told[1], told[0]] = values[0] * values[1]
    return found


def _leading_term(lefts: Tensor, rights: Tensor) -> tuple[Tensor, Tensor]:
    """Unit factors (m1, n1), (m2, n2) of the leading Kronecker term of sum_q u_q v_q^T, by power iteration.

    Args:
        lefts: u_q as matrices, (q, m1, m2).
        rights: v_q as matrices, (q, n1, n2).
    """
    start = torch.randn(lefts.shape[2], rights.shape[2], generator=torch.Generator().manual_seed(0)).to(lefts)
    a = b = _unit(start)
    for _ in range(KRONECKER_STEPS):
        a = _unit(_contracted(lefts, rights, b))
        b = _unit(_contracted(lefts.mT, rights.mT, a))
    return a, b


def _contracted(lefts: Tensor, rights: Tensor, factor: Tensor) -> Tensor:
    """sum_q U_q factor V_q^T, (m1, n1), for a factor (m2, n2): the rearrangement times a vector."""
    across = (lefts @ factor).transpose(0, 1).flatten(1)  # (m1, q n2)
    return across @ rights.transpose(1, 2).flatten(0, 1)


def _unit(matrix: Tensor) -> Tensor:
    return matrix / torch.linalg.vector_norm(matrix).clamp(min=1e-30)
