"""Two-sided, single-pass sketches of gradients that are never formed.

For a layer with inputs x (tokens, n) and output gradients d (tokens, m) the gradient is G = d^T x, of shape (m, n). Kept are

    Y = d^T (x Omega)  (m, k)    P = d^T (x Pi)  (m, p)    Z = (d Psi)^T x, transposed  (n, l)

at O(tokens (m + n) (k + p + l)) in place of O(tokens m n). Omega finds the range, Psi gives the coefficients in it, and the
independent probes Pi correct what the reconstruction misses, so that inner products stay unbiased. All are linear in G:
folds add and subtract.

References: Tropp, Yurtsever, Udell, Cevher (2017), *Practical sketching algorithms for low-rank matrix approximation*,
section 3; Meyer, Musco, Musco, Woodruff (2021), *Hutch++*, algorithm 2 (non-adaptive form).
"""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from lora_select.spectral.numerics import pseudo_inverse, top_left


@final
@dataclass(frozen=True)
class Sizes:
    """Columns of the test matrices, all from one dial: `columns` = `sketch_size` of the analysis.

    Probes are half of it (they see only the residual), `directions` half (oversampling by two), co-range one and a half times:
    three rows for each direction, so the oblique projection adds noise of half the residual's energy.
    """

    columns: int

    @property
    def probes(self) -> int:
        """Columns of Pi."""
        return max(2, self.columns // 2)

    @property
    def co_range(self) -> int:
        """Columns of Psi."""
        return 3 * self.columns // 2

    @property
    def directions(self) -> int:
        """Singular directions that are kept."""
        return max(1, self.columns // 2)


@final
@dataclass(frozen=True)
class InputSide:
    """Test matrices for a layer input of width n: `omega` (n, k) and `pi` (n, p) beside each other in `both`."""

    both: Tensor
    k: int

    @property
    def omega(self) -> Tensor:
        """Range test matrix (n, k), orthonormal columns."""
        return self.both[:, : self.k]

    @property
    def pi(self) -> Tensor:
        """Probes (n, p), orthonormal among themselves, independent of `omega`; p = 0 when k = n is exact already."""
        return self.both[:, self.k :]


@final
@dataclass
class TestMatrices:
    """One set of test matrices per width, shared by all layers of that width so that inputs are multiplied once."""

    __test__ = False
    sizes: Sizes
    seed: int
    device: torch.device
    _inputs: dict[int, InputSide] = field(default_factory=dict)
    _outputs: dict[int, Tensor] = field(default_factory=dict)

    def input_side(self, n: int) -> InputSide:
        """Omega and Pi for inputs of width n."""
        if n not in self._inputs:
            omega = haar(n, self.sizes.columns, self._generator(0, n))
            exact = omega.shape[1] == n
            pi = omega[:, :0] if exact else haar(n, self.sizes.probes, self._generator(1, n))
            self._inputs[n] = InputSide(torch.cat([omega, pi], 1).to(self.device), omega.shape[1])
        return self._inputs[n]

    def output_side(self, m: int) -> Tensor:
        """Psi (m, l) for outputs of width m."""
        if m not in self._outputs:
            self._outputs[m] = haar(m, self.sizes.co_range, self._generator(2, m)).to(self.device)
        return self._outputs[m]

    def _generator(self, side: int, width: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + width) * 3 + side)


def haar(width: int, columns: int, generator: torch.Generator) -> Tensor:
    """Orthonormal columns (width, min(columns, width)), uniformly distributed; the identity when nothing is left out.

    E[Q Q^T] = columns / width times the identity, so energies seen through Q are scaled by width / columns.
    """
    if columns >= width:
        return torch.eye(width)
    q, r = torch.linalg.qr(torch.randn(width, columns, generator=generator, dtype=torch.float64))
    return (q * torch.sign(torch.diagonal(r))).float()


@final
@dataclass(frozen=True)
class FoldSketches:
    """Sketches of F fold sums of one layer: `y` (F, m, k), `p` (F, m, p), `z` (F, n, l), and what made them."""

    y: Tensor
    p: Tensor
    z: Tensor
    input_side: InputSide
    psi: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the gradient."""
        return self.y.shape[1], self.z.shape[1]

    def basis(self, q: int) -> Tensor:
        """Orthonormal left basis (m, q) of the sum over folds, from the range sketch alone (so independent of Psi)."""
        return top_left(self.y.sum(0), q)

    def coefficients(self, basis: Tensor) -> Tensor:
        """(Psi^T Q)^+ Psi^T G_f for every fold: (F, q, n).

        Unbiased for Q^T G_f over Psi when the basis does not depend on Psi: the part of G_f outside the basis enters
        through Psi^T R with a sign that is symmetric. Exact when Psi is square.
        """
        return pseudo_inverse(self.psi.T @ basis) @ self.z.transpose(1, 2)

    def reconstruct(self, q: int) -> tuple[Tensor, Tensor, Tensor]:
        """Leading singular system (m, q), (q,), (n, q) of the sum over folds."""
        basis = self.basis(q)
        left, values, right = small_svd(self.coefficients(basis).sum(0))
        return basis @ left, values, right


def small_svd(wide: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """SVD of a wide matrix (q, n) with few rows: left (q, q), values (q,), right (n, q)."""
    left, values, right = torch.linalg.svd(wide.double(), full_matrices=False)
    return left.to(wide.dtype), values.to(wide.dtype), right.T.to(wide.dtype)


def inner_products(sketches: FoldSketches, q: int) -> tuple[Tensor, Tensor]:
    """Unbiased estimates of <G_a, G_b> for all folds, (F, F) float64, and one estimate per probe, (p, F, F).

    <G_a, G_b> = <C_a, C_b> + n/p sum_j [<G_a pi_j, G_b pi_j> - <Q C_a pi_j, Q C_b pi_j>], with C the coefficients in a
    basis Q of `q` columns: a control variate, so the probes only pay for what the basis misses. The spread over probes
    gives the sketch's standard error. Where a side is complete (k = n or l = m) the products are exact, and the probe
    axis has length 1.
    """
    m, n = sketches.shape
    y, p, z = sketches.y.double(), sketches.p.double(), sketches.z.double()
    if sketches.psi.shape[1] == m:
        exact = torch.einsum("anl,bnl->ab", z, z)
        return exact, exact[None]
    if sketches.input_side.k == n:
        exact = torch.einsum("amk,bmk->ab", y, y)
        return exact, exact[None]
    coefficients = sketches.coefficients(sketches.basis(q)).double()
    seen = coefficients @ sketches.input_side.pi.double()
    base = torch.einsum("aqn,bqn->ab", coefficients, coefficients)
    residual = torch.einsum("amp,bmp->pab", p, p) - torch.einsum("aqp,bqp->pab", seen, seen)
    each = base + n * residual
    return each.mean(0), each
