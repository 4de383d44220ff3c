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
EXACT_NORM_EVERY = 4
"""One microbatch in four gets its exact norm, by Gram matrices; the others are known through the sketches, whose common
error the exact ones correct."""


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
        self.row_norms = torch.linalg.vector_norm(module.weight.detach(), dim=1, dtype=torch.float32).square()
        self.activations = ActivationMoments(self.in_features, self.input_side.both)
        columns, co_columns, q = self.input_side.both.shape[1], self.psi.shape[1], self.weight.values.shape[0]
        self.right = torch.zeros(FOLDS, self.out_features, columns, device=device)
        self.left = torch.zeros(FOLDS, self.in_features, co_columns, device=device)
        self.weight_cores = torch.zeros(FOLDS, q, q, device=device)
        self.row_scales = torch.zeros(FOLDS, self.out_features, device=device)
        self.output_energy = torch.zeros((), dtype=torch.float64, device=device)
        self.weight_inputs = torch.zeros(q, device=device)
        self.sketched_norms: list[Tensor] = []
        self.exact_norms: list[Tensor] = []
        self.cores: list[Tensor] = []
        self.heldout: list[Tensor] = []
        self._input_directions = self.weight.right
        self._output_directions = torch.cat([self.psi, self.weight.left], 1)
        self._fixed = False
        self.tokens = 0

    def add(self, fold: int, shared: SharedInput, y: Tensor, d: Tensor) -> None:
        """Add one microbatch: input x (tokens, n), output y (tokens, m), output gradient d (tokens, m)."""
        both, k, q = self.input_side.both, self.input_side.k, self.weight.values.shape[0]
        inputs, outputs = shared.rows @ self._input_directions, d @ self._output_directions
        right = d.T @ shared.times(both)
        left = shared.rows.T @ outputs[:, : self.psi.shape[1]]
        self.right[fold] += right
        self.left[fold] += left
        self._add_norm(shared.rows, d, right, left)
        self.cores.append((self.psi.T @ (right[:, k:] if both.shape[1] > k else right)).flatten())
        outputs = outputs[:, self.psi.shape[1] :]
        self.weight_cores[fold] += outputs[:, :q].T @ inputs[:, :q]
        self.weight_inputs += (inputs[:, :q].square() * shared.weights[:, None]).sum(0)
        if self._fixed:
            self.heldout.append((outputs[:, q:] * inputs[:, q:]).sum(0))
        self._add_output(fold, shared.weights, y, d)
        self.activations.add(shared.moments(self.activations.test), shared.weights)
        self.tokens += len(d)

    def fix_directions(self, q: int) -> None:
        """Choose the singular directions from what has been seen; later microbatches give their held-out values."""
        u, _, v = self.sketches().reconstruct(q)
        self._input_directions = torch.cat([self.weight.right, v], 1)
        self._output_directions = torch.cat([self.psi, self.weight.left, u], 1)
        self._fixed = True

    @property
    def microbatches(self) -> int:
        """How many were added."""
        return len(self.sketched_norms)

    def sketches(self) -> FoldSketches:
        """The gradient's sketches so far."""
        k = self.input_side.k
        return FoldSketches(self.right[:, :, :k], self.right[:, :, k:], self.left, self.input_side, self.psi)

    def _add_norm(self, x: Tensor, d: Tensor, right: Tensor, left: Tensor) -> None:
        """||G||^2 of the microbatch: through the sketches always, exactly for one in `EXACT_NORM_EVERY`."""
        m, n = self.out_features, self.in_features
        seen_right = right.square().sum(dtype=torch.float64) * (n / right.shape[1])
        seen_left = left.square().sum(dtype=torch.float64) * (m / left.shape[1])
        if len(self.sketched_norms) % EXACT_NORM_EVERY == 0:
            self.exact_norms.append(squared_norm(x, d))
        self.sketched_norms.append((seen_right + seen_left) / 2)

    def _add_output(self, fold: int, weights: Tensor, y: Tensor, d: Tensor) -> None:
        plain = y if self._bias is None else y - self._bias
        self.row_scales[fold] += (d * plain).sum(0)
        self.output_energy += (torch.linalg.vector_norm(plain, dim=1).square() * weights).sum(dtype=torch.float64)
