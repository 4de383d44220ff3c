"""One layer's accumulators during the pass: what a microbatch adds, and nothing of size (m, n)."""

from typing import final

import torch
from torch import Tensor, nn

from lora_select.spectral.activation import ActivationMoments
from lora_select.spectral.capture import SharedInput
from lora_select.spectral.numerics import squared_norm
from lora_select.spectral.sketch import FoldSketches, TestMatrices
from lora_select.spectral.weight import WeightSystem, weight_system

FOLDS = 4
"""Two in each half of the pass. Memory is (m (k + p) + n l) floats a fold; standard errors come from microbatches."""


@final
class LayerPass:
    """Running sums of one linear layer. Gradients are of the summed loss; :mod:`finish` divides by label tokens."""

    def __init__(self, module: nn.Linear, tests: TestMatrices, directions: int):
        self.out_features, self.in_features = module.weight.shape
        device = module.weight.device
        self._bias = None if module.bias is None else module.bias.detach().float()
        self.input_side = tests.input_side(self.in_features)
        self.psi = tests.output_side(self.out_features)
        self._directions = directions
        self.weight: WeightSystem = weight_system(module.weight, directions, tests.seed)
        self.row_norms = module.weight.detach().float().square().sum(1)
        self.activations = ActivationMoments(self.in_features, self.input_side.both)
        columns, co_columns, q = self.input_side.both.shape[1], self.psi.shape[1], self.weight.values.shape[0]
        self.right = torch.zeros(FOLDS, self.out_features, columns, device=device)
        self.left = torch.zeros(FOLDS, self.in_features, co_columns, device=device)
        self.weight_cores = torch.zeros(FOLDS, q, q, device=device)
        self.row_scales = torch.zeros(FOLDS, self.out_features, device=device)
        self.output_energy = torch.zeros((), dtype=torch.float64, device=device)
        self.weight_inputs = torch.zeros(q, device=device)
        self.norms: list[Tensor] = []
        self.cores: list[Tensor] = []
        self.heldout: list[Tensor] = []
        self._fixed: tuple[Tensor, Tensor] | None = None
        self.tokens = 0

    def add(self, fold: int, shared: SharedInput, y: Tensor, d: Tensor) -> None:
        """Add one microbatch: input x (tokens, n), output y (tokens, m), output gradient d (tokens, m)."""
        x, both, k = shared.rows, self.input_side.both, self.input_side.k
        right = d.T @ shared.times(both)
        self.right[fold] += right
        self.left[fold] += x.T @ (d @ self.psi)
        self.norms.append(squared_norm(x, d))
        self.cores.append((self.psi.T @ (right[:, k:] if both.shape[1] > k else right)).flatten())
        self._add_weight(fold, shared, y, d)
        self.activations.add(shared.moments(self.activations.test), shared.weights)
        self.tokens += len(x)
        if self._fixed is not None:
            u, v = self._fixed
            self.heldout.append(((d @ u) * (x @ v)).sum(0))

    def fix_directions(self, q: int) -> None:
        """Choose the singular directions from what has been seen; later microbatches give their held-out values."""
        u, _, v = self.sketches().reconstruct(q)
        self._fixed = (u, v)

    def sketches(self) -> FoldSketches:
        """The gradient's sketches so far."""
        k = self.input_side.k
        return FoldSketches(self.right[:, :, :k], self.right[:, :, k:], self.left, self.input_side, self.psi)

    def _add_weight(self, fold: int, shared: SharedInput, y: Tensor, d: Tensor) -> None:
        plain = y if self._bias is None else y - self._bias
        coordinates = shared.rows @ self.weight.right
        self.weight_cores[fold] += (d @ self.weight.left).T @ coordinates
        self.row_scales[fold] += (d * plain).sum(0)
        self.weight_inputs += (coordinates.square() * shared.weights[:, None]).sum(0)
        self.output_energy += (plain.square().sum(1) * shared.weights).sum(dtype=torch.float64)
