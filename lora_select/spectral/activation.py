"""Leading eigenvectors of a layer input's centred second moment, streamed."""

from typing import final

import torch
from torch import Tensor

EXACT_WIDTH = 256
"""Up to this width the whole second moment (n, n) is kept; beyond, its product with a test matrix."""


@final
class ActivationMoments:
    """Sums over counted tokens of x x^T Theta (n, a), x (n,) and ||x||^2; Theta is the identity for narrow layers."""

    def __init__(self, width: int, test: Tensor):
        self.test = None if width <= EXACT_WIDTH else test
        columns = width if self.test is None else test.shape[1]
        self._second = torch.zeros(width, columns, device=test.device)
        self._sum = torch.zeros(width, device=test.device)
        self._energy = torch.zeros((), dtype=torch.float64, device=test.device)
        self._tokens = torch.zeros((), dtype=torch.float64, device=test.device)

    def add(self, moments: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Add one microbatch's sums."""
        for total, new in zip(self.sums(), moments, strict=True):
            total += new

    def sums(self) -> list[Tensor]:
        """Every tensor that adds up over ranks."""
        return [self._second, self._sum, self._energy, self._tokens]

    def tokens(self) -> float:
        """Counted tokens, at least 1."""
        return max(1.0, float(self._tokens))

    def energy(self) -> float:
        """E||x||^2 per counted token, not centred."""
        return float(self._energy) / self.tokens()

    def mean(self) -> Tensor:
        """E[x], (n,)."""
        return self._sum / self.tokens()

    def variance(self) -> float:
        """E||x - E[x]||^2 per counted token, the sum of all eigenvalues of the centred second moment."""
        return max(0.0, self.energy() - float(self.mean().double().square().sum()))

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues (q,) per token and eigenvectors (n, q) of E[(x - mean)(x - mean)^T].

        Exact for narrow layers. Else Nystroem: with S = C Theta, C is replaced by S (Theta^T S)^+ S^T, which never
        exceeds C, so each eigenvalue is a lower bound.

        References:
            Tropp, Yurtsever, Udell, Cevher (2017), *Fixed-rank approximation of a positive-semidefinite matrix from
            streaming data*, algorithm 3.
        """
        mean = self.mean().double()
        second = self._second.double() / self.tokens()
        if self.test is None:
            values, vectors = torch.linalg.eigh(second - torch.outer(mean, mean))
            return values[-count:].flip(0).clamp(min=0).float(), vectors[:, -count:].flip(1).float()
        test = self.test.double()
        return _nystroem(second - torch.outer(mean, mean @ test), test, count)


def _nystroem(sketch: Tensor, test: Tensor, count: int) -> tuple[Tensor, Tensor]:
    core = test.T @ sketch
    values, vectors = torch.linalg.eigh((core + core.T) / 2)
    kept = values > values[-1] * 1e-6  # below this the float32 sums carry no digits
    factor = sketch @ (vectors[:, kept] / values[kept].sqrt())
    energies, rotation = torch.linalg.eigh(factor.T @ factor)
    count = min(count, len(energies))
    basis, triangular = torch.linalg.qr(factor @ rotation[:, -count:].flip(1))
    return energies[-count:].flip(0).float(), (basis * torch.sign(torch.diagonal(triangular))).float()
