"""One layer's accumulators during the pass: what a microbatch adds, and nothing of size (m, n)."""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from lora_select.spectral.activation import ActivationMoments
from lora_select.spectral.capture import SharedInput
from lora_select.spectral.linear_layers import shape_of
from lora_select.spectral.numerics import squared_norm
from lora_select.spectral.sketch import FoldSketches, TestMatrices

FOLDS = 4
"""Two in each half of the pass. Memory is (m k + n l) floats a fold; standard errors come from microbatches."""
CALIBRATE_EVERY = 4
CALIBRATION_TOKENS = 128
"""Of one microbatch in four so many tokens, evenly spread, give a norm both exactly, by Gram matrices, and through the sketches: their
ratio corrects the sketches' error, which is common to all microbatches because they share the test matrices."""
MOMENT_TOKENS = 8_192
"""Second moments of wide inputs are summed over so many tokens of the whole pass, evenly spread. Half as many agree nearly as well with
exact directions (0.93 for 0.94), and all of 32 x 2,048 would cost a third of what all hooks do."""
OUTPUT_TOKENS = 128
"""Energies of outputs are summed over so many evenly spread tokens of a microbatch."""
CORE_ROWS = 16
"""Rows of the small projection of every microbatch gradient that sampling errors are computed from."""


def fold_of_each(microbatches: int) -> list[int]:
    """The fold of every microbatch: the first half alternates between folds 0 and 1, the second between 2 and 3.

    Example:
        >>> fold_of_each(6)
        [0, 1, 0, 3, 2, 3]
    """
    half = microbatches // 2
    return [index % 2 + (0 if index < half else FOLDS // 2) for index in range(microbatches)]


@final
@dataclass(frozen=True)
class MicrobatchSlice:
    """Rows `first` to `end` of microbatch `index`, which has `whole`; of its tokens every `spacing`-th gives second moments."""

    index: int
    first: int
    end: int
    whole: int
    spacing: int = 1


def spacing(tokens: int, microbatches: int) -> int:
    """Distance of the tokens that give second moments, in a microbatch of so many.

    Example:
        >>> spacing(1024, 4), spacing(2048, 32)
        (1, 8)
    """
    return max(1, -(-tokens * microbatches // MOMENT_TOKENS))


@final
@dataclass
class Part:
    """What the rows of one microbatch that were run so far gave: sketches of their gradient, norms of a sample, held-out values."""

    right: Tensor
    left: Tensor
    sample: Tensor | None
    heldout: Tensor | None


@final
class LayerSums:
    """Running sums of one linear layer. Gradients are of the summed loss; :mod:`finish` divides by label tokens.

    Everything is a sum over microbatches, or has a place of its own for each, so the passes of several ranks add up.
    """

    def __init__(self, module: nn.Module, tests: TestMatrices, microbatches: int):
        self.out_features, self.in_features = m, n = shape_of(module)
        self.module = module
        device = module.weight.device
        assert isinstance(device, torch.device)
        bias = module.bias
        self._bias = bias.detach().float() if isinstance(bias, Tensor) else None
        self.input_side, self.psi = tests.input_side(n, device), tests.output_side(m, device)
        self.folds = fold_of_each(microbatches)
        k, l = self.input_side.k, self.psi.shape[1]  # noqa: E741
        self._core_rows = l if l == m else min(CORE_ROWS, l)
        directions = min(tests.sizes.directions, m, n)
        self.right = torch.zeros(FOLDS, m, k, device=device)
        self.left = torch.zeros(FOLDS, n, l, device=device)
        self.activations = ActivationMoments(self.input_side.look, tests.sizes.moments)
        self.outputs = torch.zeros(2, dtype=torch.float64, device=device)
        """Sum of ||W x||^2 over counted tokens, and their number."""
        self.sketched_norms = torch.zeros(microbatches, dtype=torch.float64, device=device)
        self.sample_norms = torch.zeros(2, dtype=torch.float64, device=device)
        """Of the samples that calibrate: exact, and through the sketches."""
        self.cores = torch.zeros(microbatches, self._core_rows * k, device=device)
        self.heldout = torch.zeros(microbatches, directions, device=device)
        self.counts = torch.zeros(2, dtype=torch.int64, device=device)
        """Microbatches and tokens that were added."""
        self._output_tests, self._right_directions = self.psi, None
        self._rows_done = self._tokens_done = 0
        self._part: Part | None = None

    @property
    def microbatches(self) -> int:
        """How many were added."""
        return int(self.counts[0])

    @property
    def tokens(self) -> int:
        """How many were added."""
        return int(self.counts[1])

    def begin(self) -> None:
        """Begin a microbatch."""
        self._rows_done, self._tokens_done, self._part = 0, 0, None

    def add(self, place: MicrobatchSlice, shared: SharedInput, d: Tensor) -> None:
        """Add rows of a microbatch.

        A microbatch that did not fit into memory comes again in smaller parts; what this layer has seen of it is not added twice.

        Args:
            place: which rows.
            shared: the layer's input x (tokens, n).
            d: output gradient (tokens, m).
        """
        if place.first < self._rows_done:
            return
        part = self._measure(place.index, shared, d)
        test = self.activations.test
        chosen = slice(None) if test is None else slice(-self._tokens_done % place.spacing, None, place.spacing)
        self.activations.add(shared.moments(test, chosen))
        self._rows_done, self._tokens_done = place.end, self._tokens_done + len(d)
        self.counts[1] += len(d)
        if self._part is not None:
            part = self._joined(self._part, part)
        self._part = part
        if place.end == place.whole:
            self._close(place.index, part)

    def fix_directions(self) -> None:
        """Choose the singular directions from what has been seen; later microbatches give their held-out values."""
        u, _, v = self.sketches().reconstruct(self.heldout.shape[1])
        self._output_tests, self._right_directions = torch.cat([self.psi, u], 1), v

    def sketches(self) -> FoldSketches:
        """The gradient's sketches so far."""
        return FoldSketches(self.right, self.left, self.input_side, self.psi)

    @property
    def output_energy(self) -> float:
        """E||W x||^2 per counted token."""
        return float(self.outputs[0]) / max(1.0, float(self.outputs[1]))

    def watched(self, y: Tensor, weights: Tensor | None) -> Tensor:
        """What outputs y (tokens, m) add to `outputs`."""
        step = -(-len(y) // OUTPUT_TOKENS)
        plain = y[::step] if self._bias is None else y[::step] - self._bias
        norms = torch.linalg.vector_norm(plain, dim=1).square()
        weights = torch.ones_like(norms) if weights is None else weights[::step]
        return torch.stack([norms @ weights, weights.sum()]).double()

    def sums(self) -> list[Tensor]:
        """Every tensor that adds up over ranks."""
        own = [
            self.right,
            self.left,
            self.outputs,
            self.sketched_norms,
            self.sample_norms,
            self.cores,
            self.heldout,
        ]
        return [*own, self.counts, *self.activations.sums()]

    def _measure(self, index: int, shared: SharedInput, d: Tensor) -> Part:
        l, v = self.psi.shape[1], self._right_directions  # noqa: E741
        outputs = d @ self._output_tests
        seen = shared.times(self.input_side.omega)
        right, back = d.T @ seen, shared.rows.T @ outputs
        left = back[:, :l]
        heldout = None if v is None else (back[:, l:] * v).sum(0)
        sample = None
        if index % CALIBRATE_EVERY == 0:
            step = -(-len(d) // CALIBRATION_TOKENS)
            x, g = shared.rows[::step], d[::step]
            through = self._sketched(g.T @ seen[::step], x.T @ outputs[::step, :l])
            sample = torch.stack([squared_norm(x, g), through])
        return Part(right, left, sample, heldout)

    def _sketched(self, right: Tensor, left: Tensor) -> Tensor:
        """||G||^2 through both sketches."""
        sizes = torch.stack([torch.linalg.vector_norm(right), torch.linalg.vector_norm(left)])
        return sizes.double().square().sum() / 2

    def _joined(self, one: Part, other: Part) -> Part:
        """Two parts of a microbatch."""
        sample = None if one.sample is None or other.sample is None else one.sample + other.sample
        heldout = None if one.heldout is None or other.heldout is None else one.heldout + other.heldout
        return Part(one.right + other.right, one.left + other.left, sample, heldout)

    def _close(self, index: int, part: Part) -> None:
        fold = self.folds[index]
        self.right[fold] += part.right
        self.left[fold] += part.left
        self.sketched_norms[index] = self._sketched(part.right, part.left)
        if part.sample is not None:
            self.sample_norms += part.sample
        if part.heldout is not None:
            self.heldout[index] = part.heldout
        rows = self._core_rows
        scale = (self.psi.shape[1] / rows) ** 0.5
        self.cores[index] = (self.psi[:, :rows].T @ part.right).flatten() * scale
        self.counts[0] += 1
        self._part = None
