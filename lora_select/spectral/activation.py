"""Leading eigenvectors of a layer input's centred second moment, streamed.

The first microbatches are seen through a random test matrix; what it finds becomes the test matrix of all others. That is one step of
subspace iteration inside a single pass: a random matrix of 48 columns finds the 16 leading directions of real inputs half as well
(docs/log.md). All of it is sums over tokens, so ranks add up, and a microbatch that comes in parts gives the same.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

EXACT_WIDTH = 256
"""Up to this width the whole second moment (n, n) is kept; beyond, its product with a test matrix."""


@final
@dataclass(frozen=True)
class Seen:
    """What some tokens gave: their number, mean (n,), E||x||^2, and F (n, q), F F^T at most their centred second moment."""

    tokens: float
    mean: Tensor
    energy: float
    factor: Tensor


@final
class ActivationMoments:
    """Sums over counted tokens of x x^T Theta (n, a), x (n,) and ||x||^2; Theta is the identity for narrow layers.

    Args:
        look: Theta of the first microbatches (n, a), random.
        kept: columns of the Theta that replaces it, at most a.
    """

    def __init__(self, look: Tensor, kept: int):
        width, columns = look.shape
        self.test = None if width <= max(EXACT_WIDTH, columns) else look
        self._kept, self._first = kept, None
        self._begin(width, look.device)

    def _begin(self, width: int, device: torch.device) -> None:
        columns = width if self.test is None else self.test.shape[1]
        self._second = torch.zeros(width, columns, device=device)
        self._sum = torch.zeros(width, device=device)
        self._energy = torch.zeros((), dtype=torch.float64, device=device)
        self._tokens = torch.zeros((), dtype=torch.float64, device=device)

    def add(self, moments: tuple[Tensor, Tensor, Tensor, Tensor]) -> None:
        """Add one microbatch's sums."""
        for total, new in zip(self.sums(), moments, strict=True):
            total += new

    def sums(self) -> list[Tensor]:
        """Every tensor that adds up over ranks, since the last turn."""
        return [self._second, self._sum, self._energy, self._tokens]

    def turn(self) -> None:
        """Put the sums so far aside, and look along their leading directions from now on; nothing for narrow layers.

        Where there are fewer directions than columns, as after few tokens, random ones stay.
        """
        if self.test is None:
            return
        seen = self._seen()
        energies, directions = _leading(seen.factor, self._kept)
        self._first = Seen(seen.tokens, seen.mean, seen.energy, (directions * energies.sqrt()).float())
        missing = self._kept - directions.shape[1]
        both = torch.cat([directions, self.test[:, :missing].double()], 1)
        self.test = torch.linalg.qr(both)[0].float() if missing else both.float()
        self._begin(len(self._sum), self._sum.device)

    def tokens(self) -> float:
        """Counted tokens, at least 1."""
        return max(1.0, float(self._tokens) + (self._first.tokens if self._first else 0.0))

    def energy(self) -> float:
        """E||x||^2 per counted token, not centred."""
        first = self._first.energy * self._first.tokens if self._first else 0.0
        return (float(self._energy) + first) / self.tokens()

    def mean(self) -> Tensor:
        """E[x], (n,)."""
        first = self._first.mean * self._first.tokens if self._first else 0.0
        return ((self._sum.double() + first) / self.tokens()).float()

    def variance(self) -> float:
        """E||x - E[x]||^2 per counted token, the sum of all eigenvalues of the centred second moment."""
        return max(0.0, self.energy() - float(self.mean().double().square().sum()))

    def leading(self, count: int) -> tuple[Tensor, Tensor]:
        """Leading eigenvalues (q,) per token and eigenvectors (n, q) of E[(x - mean)(x - mean)^T].

        Exact for narrow layers. Else Nystroem: with S = C Theta, C is replaced by S (Theta^T S)^+ S^T, which never
        exceeds C, so each eigenvalue is a lower bound. That holds before and after the turn; with p and 1 - p of the tokens

            C = p C_1 + (1 - p) C_2 + p (1 - p) (mean_1 - mean_2)(mean_1 - mean_2)^T.

        References:
            Tropp, Yurtsever, Udell, Cevher (2017), *Fixed-rank approximation of a positive-semidefinite matrix from
            streaming data*, algorithm 3; Chan, Golub, LeVeque (1983), *Algorithms for computing the sample variance*.
        """
        if self.test is None:
            mean = self.mean().double()
            values, vectors = torch.linalg.eigh(self._second.double() / self.tokens() - torch.outer(mean, mean))
            return values[-count:].flip(0).clamp(min=0).float(), vectors[:, -count:].flip(1).float()
        factor, first = self._seen(), self._first
        if first is None:
            energies, vectors = _leading(factor.factor, count)
        else:
            share = first.tokens / self.tokens()
            between = (share * (1 - share)) ** 0.5 * (first.mean - factor.mean)
            parts = [share**0.5 * first.factor.double(), (1 - share) ** 0.5 * factor.factor, between[:, None]]
            energies, vectors = _leading(torch.cat(parts, 1), count)
        return energies.float(), vectors.float()

    def _seen(self) -> Seen:
        """Since the last turn."""
        assert self.test is not None
        tokens = max(1.0, float(self._tokens))
        mean, test = self._sum.double() / tokens, self.test.double()
        sketch = self._second.double() / tokens - torch.outer(mean, mean @ test)
        core = test.T @ sketch
        values, vectors = torch.linalg.eigh((core + core.T) / 2)
        kept = values > values[-1].clamp(min=0) * 1e-6  # below this the float32 sums carry no digits
        factor = sketch @ (vectors[:, kept] / values[kept].sqrt())
        return Seen(float(self._tokens), mean, float(self._energy) / tokens, factor)


def _leading(factor: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading eigenvalues and orthonormal eigenvectors (n, q) of F F^T, q at most its rank."""
    energies, rotation = torch.linalg.eigh(factor.T @ factor)
    count = min(count, int((energies > energies.max().clamp(min=0) * 1e-12).sum())) if len(energies) else 0
    basis, triangular = torch.linalg.qr(factor @ rotation[:, len(energies) - count :].flip(1))
    return energies[len(energies) - count :].flip(0), basis * torch.sign(torch.diagonal(triangular))
