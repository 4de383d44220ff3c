"""Two-sided, single-pass sketches of gradients that are never formed.

For a layer with inputs x (tokens, n) and output gradients d (tokens, m) the gradient is G = d^T x, of shape (m, n). Kept are

    Y = d^T (x Omega)  (m, k)    Z = (d Psi)^T x, transposed  (n, l)

at O(tokens (m + n) (k + l)) in place of O(tokens m n). Omega finds the range, Psi gives the coefficients in it, and what least squares
leaves over in Psi's coordinates tells, without bias, how much the range has missed. Both are linear in G: folds add and subtract, and
so do ranks of a distributed pass.

Test matrices are Gaussian. Sparse signs and bucket sums were measured and do not pay: at these widths a product with 32 to 64 columns
runs at the speed of the memory that a gather would cost (docs/log.md).

References: Tropp, Yurtsever, Udell, Cevher (2017), *Practical sketching algorithms for low-rank matrix approximation*, algorithms 3
and 4, theorem 4.3; (2019), *Streaming low-rank matrix approximation with an application to scientific simulation*, section 6.
"""

from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from lora_select.spectral.numerics import small_svd, top_left

WANTED_ERROR = 1.0
"""The reconstruction of `directions` directions may be off by this factor times the best approximation of that rank, beyond it."""
BLOCKS = 12
"""Groups of columns of Psi that are left out in turn, for the sketch's standard error."""


@final
@dataclass(frozen=True)
class Sizes:
    """Columns of the test matrices, all from one dial: k = `columns` = `sketch_size` of the analysis.

    The co-range gets l = 1.5 k. Directions are then as many as the wanted error allows: the squared error of q directions is at
    most (1 + q / (k - q - 1)) (1 + q / (l - q - 1)) times the best possible in the mean (theorem 4.3, with the range cut to q).
    """

    columns: int

    @property
    def co_range(self) -> int:
        """Columns l of Psi."""
        return 3 * self.columns // 2

    @property
    def look(self) -> int:
        """Columns of the activations' random test matrix, of which half as many directions are kept."""
        return 3 * self.columns

    @property
    def moments(self) -> int:
        """Columns of the test matrix that replaces it: half as many more as directions that EVA may start from."""
        return 3 * self.columns // 2

    @property
    def directions(self) -> int:
        """Singular directions that are trusted: the largest q whose error factor is within (1 + WANTED_ERROR)^2, at most half of k.

        With l + q = 2 k columns the product with outputs fills a processor's vectors: 66 columns run at two thirds of the speed of 64.
        """
        allowed = (1 + WANTED_ERROR) ** 2
        half = range(1, self.columns // 2 + 1)
        return max([1, *(q for q in half if error_factor(q, self.columns, self.co_range) <= allowed)])


def error_factor(q: int, k: int, l: int) -> float:  # noqa: E741
    """Mean squared error of q directions from sketches of k and l columns over the best possible; infinite without slack.

    Example:
        >>> round(error_factor(16, 32, 48), 2)
        3.13
    """
    if q + 1 >= k or q + 1 >= l:
        return float("inf")
    return (1 + q / (k - q - 1)) * (1 + q / (l - q - 1))


@final
@dataclass(frozen=True)
class InputSide:
    """Test matrices for a layer input of width n: Omega (n, k) for the gradient, and `look` (n, 3 k) for the second moment."""

    omega: Tensor
    look: Tensor

    @property
    def k(self) -> int:
        """Columns of Omega."""
        return self.omega.shape[1]


@final
@dataclass
class TestMatrices:
    """One set of test matrices per width and device, shared by all layers of that width so that inputs are multiplied once."""

    __test__ = False
    sizes: Sizes
    seed: int
    _inputs: dict[tuple[int, str], InputSide] = field(default_factory=dict)
    _outputs: dict[tuple[int, str], Tensor] = field(default_factory=dict)

    def input_side(self, n: int, device: torch.device) -> InputSide:
        """Omega and the first test matrix of the second moment for inputs of width n."""
        key = (n, str(device))
        if key not in self._inputs:
            omega = gaussian(n, self.sizes.columns, self._generator(0, n))
            look = gaussian(n, self.sizes.look, self._generator(1, n))
            self._inputs[key] = InputSide(omega.to(device), look.to(device))
        return self._inputs[key]

    def output_side(self, m: int, device: torch.device) -> Tensor:
        """Psi (m, l) for outputs of width m."""
        key = (m, str(device))
        if key not in self._outputs:
            self._outputs[key] = gaussian(m, self.sizes.co_range, self._generator(2, m)).to(device)
        return self._outputs[key]

    def _generator(self, side: int, width: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + width) * 3 + side)


def gaussian(width: int, columns: int, generator: torch.Generator) -> Tensor:
    """Independent normal entries of variance 1 / columns, (width, columns); the identity when nothing would be left out.

    E[Q Q^T] is the identity, so energies seen through Q are unbiased.
    """
    if columns >= width:
        return torch.eye(width)
    return torch.randn(width, columns, generator=generator) / columns**0.5


@final
@dataclass(frozen=True)
class FoldSketches:
    """Sketches of F fold sums of one layer: `y` (F, m, k), `z` (F, n, l), and what made them."""

    y: Tensor
    z: Tensor
    input_side: InputSide
    psi: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n) of the gradient."""
        return self.y.shape[1], self.z.shape[1]

    def of(self, folds: list[int]) -> "FoldSketches":
        """The sketches of some folds."""
        return FoldSketches(self.y[folds], self.z[folds], self.input_side, self.psi)

    def basis(self, q: int) -> Tensor:
        """Orthonormal left basis (m, q) of the sum over folds, from the range sketch alone (so independent of Psi)."""
        return top_left(self.y.sum(0), q)

    def coefficients(self, basis: Tensor) -> Tensor:
        """(Psi^T Q)^+ Psi^T G_f for every fold: (F, q, n).

        Unbiased for Q^T G_f over Psi when the basis does not depend on Psi: the part of G_f outside the basis enters
        through Psi^T R with a sign that is symmetric. Exact when Psi is square.
        """
        inverse = torch.linalg.pinv((self.psi.T @ basis).double()).to(self.z.dtype)
        return inverse @ self.z.transpose(1, 2)

    def reconstruct(self, q: int) -> tuple[Tensor, Tensor, Tensor]:
        """Leading singular system (m, q), (q,), (n, q) of the sum over folds."""
        basis = self.basis(q)
        left, values, right = small_svd(self.coefficients(basis).sum(0))
        return basis @ left, values, right


@final
@dataclass(frozen=True)
class InnerProducts:
    """Unbiased <G_a, G_b> for all folds, (F, F) float64; the same with each block of Psi left out, (B, F, F); and `missed`.

    `missed` (F, F) are the inner products of what lies outside the basis, whose sum tells the reconstruction's error.
    B is 0 where the products are exact.
    """

    value: Tensor
    left_out: Tensor
    missed: Tensor
    inflation: float
    """E||reconstruction - G||^2 over the energy outside the basis; 1 for an exact sketch."""


def inner_products(sketches: FoldSketches, q: int) -> InnerProducts:
    """Unbiased estimates of <G_a, G_b> from Z, with the leading `q` range directions as control variate.

    With Q the basis, A = Psi^T Q and Z_f = Psi^T G_f = A Q^T G_f + B R_f, B the independent part of Psi and R_f what the basis
    misses: least squares gives C_f = A^+ Z_f and the residual N_f = (1 - A A^+) Z_f. Given A, E<N_a, N_b> = (l - q) / l <R_a, R_b> and
    E<C_a, C_b> = <Q^T G_a, Q^T G_b> + tr((A^T A)^-1) / l <R_a, R_b>, so

        <G_a, G_b> = <C_a, C_b> + (1 - tr((A^T A)^-1) / l) l / (l - q) <N_a, N_b>

    in the mean over Psi. Where a side is complete (k = n or l = m) the products are exact.
    """
    m, n = sketches.shape
    z = sketches.z.double()
    if sketches.psi.shape[1] == m or sketches.input_side.k == n:
        whole = z if sketches.psi.shape[1] == m else sketches.y.double()
        exact = whole.flatten(1) @ whole.flatten(1).T
        return InnerProducts(exact, exact[:0], torch.zeros_like(exact), 1.0)
    seen = sketches.psi.double().T @ sketches.basis(q).double()
    weights = least_squares(seen)
    values = (_grams(z) @ torch.cat([weights.energy, weights.missed[:1]]).flatten(1).T).movedim(-1, 0)
    return InnerProducts(values[0], values[1:-1], values[-1], 1 + float(weights.spill[0]))


@final
@dataclass(frozen=True)
class LeastSquares:
    """Weights (1 + B, l, l) whose products with Z_a^T Z_b give <G_a, G_b> and what of it is outside the basis; and `spill` (1 + B,).

    The first with all columns of Psi, the others with one of B blocks of them left out.
    """

    energy: Tensor
    missed: Tensor
    spill: Tensor


def least_squares(seen: Tensor) -> LeastSquares:
    """Weights for A = Psi^T Q (l, q), entries of variance 1 / l; see :func:`inner_products`. By normal equations: A is well-conditioned."""
    columns, q = seen.shape
    block = torch.arange(columns, device=seen.device) // -(-columns // BLOCKS)
    kept = torch.cat([torch.ones_like(seen[None, :, 0]), (block != block.unique()[:, None]).to(seen)])
    remaining = kept[:, :, None] * seen
    factor = torch.linalg.cholesky(remaining.mT @ remaining)
    inverse = torch.cholesky_solve(remaining.mT, factor)
    spill = inverse.square().sum((1, 2)) / columns
    rest = torch.diag_embed(kept) - remaining @ inverse
    missed = rest * (columns / (kept.sum(1) - q))[:, None, None]
    return LeastSquares(inverse.mT @ inverse + (1 - spill)[:, None, None] * missed, missed, spill)


def _grams(z: Tensor) -> Tensor:
    """Z_a^T Z_b of all folds, (F, F, l l), from Z (F, n, l)."""
    folds, n, columns = z.shape
    flat = z.transpose(0, 1).reshape(n, folds * columns)
    return (flat.T @ flat).view(folds, columns, folds, columns).transpose(1, 2).flatten(2)
