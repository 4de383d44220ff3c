"""The subspaces that OLoRA starts from: the span of a weight's first columns, and the rows that it takes of W."""

import torch
from torch import Tensor

from lora_select.spectral.weight import WeightSystem


def column_system(weight: Tensor, leading: WeightSystem) -> WeightSystem:
    """Orthonormal bases of the first columns of W = Q R and of the first rows of R = Q^T W, nested by rank.

    Args:
        weight: (m, n), any floating type.
        leading: W's leading system; it says how many directions are wanted, and has W's energy.

    Returns:
        `left` Q (m, q) and `right` (n, q), whose first r columns span the first r rows of R; values are |R_kk|, in W's unit.
    """
    w = weight.detach().float()
    left, triangular = torch.linalg.qr(w[:, : len(leading.values)])
    right = torch.linalg.qr(w.T @ left).Q
    return WeightSystem(left, triangular.diagonal().abs(), right.contiguous(), leading.energy, 0.0)
