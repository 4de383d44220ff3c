"""Factorisations behind the starts: parts of a weight as B A."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def principal_factors(weight: "Tensor", r: int, scale: float) -> "tuple[Tensor, Tensor]":
    """A = sqrt(S_r / s) V_r^T (r, n) and B = U_r sqrt(S_r / s) (m, r), so that s B A is W's best rank-r approximation.

    The SVD comes from the eigenvectors of the smaller Gram matrix in float64: the leading values carry a relative error of
    about 1e-16 (sigma_1 / sigma_r)^2, at a fraction of an SVD's cost.
    """
    left, values, right = _gram_svd(weight)
    return _balanced(left[:, :r], values[:r], right[:, :r], scale)


def minor_factors(weight: "Tensor", r: int, scale: float) -> "tuple[Tensor, Tensor]":
    """The same of the r smallest of the min(m, n) singular values, descending.

    Here a Gram matrix would lose the digits of small values, so this is a full SVD in float64.
    """
    import torch

    u, s, vt = torch.linalg.svd(weight.double(), full_matrices=False)
    return _balanced(u[:, -r:], s[-r:], vt[-r:].T, scale)


def qr_factors(weight: "Tensor", r: int) -> "tuple[Tensor, Tensor]":
    """A = R_r (r, n) and B = Q_r (m, r) of W = Q R: B A is W's projection on the span of its first r columns."""
    import torch

    q, triangular = torch.linalg.qr(weight.double())
    return triangular[:r].float(), q[:, :r].float()


def oriented_factors(
    weight: "Tensor", directions: "Tensor", values: "Tensor", r: int, scale: float, *, smallest: bool
) -> "tuple[Tensor, Tensor]":
    """CorDA: U, S, V of W C; A = sqrt(S_r / s) V_r^T C^-1 and B = U_r sqrt(S_r / s), so that s B A = U_r U_r^T W.

    C = Z diag(values) Z^T + d I, d = 1 % of its mean diagonal, is the inputs' second moment by its leading eigenpairs, with
    the damping of the authors' code; its inverse is exact.

    Args:
        weight: W, (m, n).
        directions: Z, (n, q), orthonormal.
        values: (q,), not negative.
        r: how many triplets.
        scale: s.
        smallest: the r smallest of the min(m, n) singular values in place of the largest.
    """
    import torch

    w, z, lam = weight.double(), directions.double(), values.double()
    damping = (0.01 * lam.sum() / len(z)).clamp(min=1e-12)
    oriented = (w @ z * lam) @ z.T + damping * w
    if smallest:
        u, s, vt = torch.linalg.svd(oriented, full_matrices=False)
        u, s, v = u[:, -r:], s[-r:], vt[-r:].T
    else:
        u, s, v = (part[..., :r] for part in _gram_svd(oriented))
    inverse_v = v / damping + z @ ((1 / (lam + damping) - 1 / damping)[:, None] * (z.T @ v))
    gain = (s / scale).sqrt()
    return (gain[:, None] * inverse_v.T).float(), (u * gain).float()


def _gram_svd(weight: "Tensor") -> "tuple[Tensor, Tensor, Tensor]":
    """U (m, p), S (p,) descending, V (n, p) with p = min(m, n), float64, through the smaller Gram matrix."""
    import torch

    w = weight.double()
    tall = w.shape[0] >= w.shape[1]
    values, vectors = torch.linalg.eigh(w.T @ w if tall else w @ w.T)
    vectors, root = vectors.flip(1), values.flip(0).clamp(min=0).sqrt()
    other = (w if tall else w.T) @ vectors / root.clamp(min=1e-30)
    return (other, root, vectors) if tall else (vectors, root, other)


def _balanced(left: "Tensor", values: "Tensor", right: "Tensor", scale: float) -> "tuple[Tensor, Tensor]":
    gain = (values / scale).sqrt()
    return (gain[:, None] * right.T).float(), (left * gain).float()
