"""Parts of the gradient in the subspaces that variants start from, as cross-fold inner products."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
from torch import Tensor

from lora_select.spectral.layer import LayerPass
from lora_select.spectral.view import RANKS, LayerView


@final
@dataclass(frozen=True)
class Projections:
    """Inner products over folds, (F, F), of the whole gradient and of its parts, some by rank.

    `seen_left` and `seen_right` are the whole gradient through Psi^T G and G [Omega, Pi], unscaled: the denominators for
    parts seen through the same sketch, whose error then cancels where the gradient has few directions.
    """

    whole: np.ndarray
    seen_left: np.ndarray
    seen_right: np.ndarray
    row_scale: np.ndarray
    activation: Mapping[int, np.ndarray]
    weight_left: Mapping[int, np.ndarray]
    weight_right: Mapping[int, np.ndarray]
    weight_both: Mapping[int, np.ndarray]


def project(layer: LayerPass, whole: Tensor, activation_vectors: Tensor) -> Projections:
    """Project a layer's sketches; exact for row scaling and `weight_both`, through the sketch for the others.

    Args:
        layer: the finished sums.
        whole: <G_a, G_b> (F, F).
        activation_vectors: (n, q) leading activation directions.
    """
    right, left = layer.right.double(), layer.left.double()
    by_left = layer.weight.left.double().T @ right
    by_right = layer.weight.right.double().T @ left
    by_activation = activation_vectors.double().T @ left
    scaled = layer.row_scales.double() / layer.row_norms.double().clamp(min=1e-30).sqrt()
    cores = layer.weight_cores.double()
    return Projections(
        whole=whole.cpu().numpy(),
        seen_left=_gram(left),
        seen_right=_gram(right),
        row_scale=_gram(scaled),
        activation={r: _gram(by_activation[:, :r]) for r in ranks(layer)},
        weight_left={r: _gram(by_left[:, :r]) for r in ranks(layer)},
        weight_right={r: _gram(by_right[:, :r]) for r in ranks(layer)},
        weight_both={r: _gram(cores[:, :r, :r]) for r in ranks(layer)},
    )


def ranks(layer: LayerPass) -> list[int]:
    """The measured adapter ranks that the layer can hold."""
    return [r for r in RANKS if r <= min(layer.out_features, layer.in_features)]


def static_view(layer: LayerPass, activation_values: Tensor, activation_vectors: Tensor) -> LayerView:
    """The numbers of a layer that do not depend on folds; shares are filled in by :func:`fold_view`."""
    tokens = layer.activations.tokens()
    along_mean = (layer.activations.mean() @ activation_vectors).square()
    return LayerView(
        out_features=layer.out_features,
        in_features=layer.in_features,
        activation_energy=layer.activations.energy(),
        output_energy=float(layer.output_energy) / tokens,
        weight_energy=layer.weight.energy,
        weight_values=tuple(layer.weight.values.tolist()),
        weight_input_energy=tuple((layer.weight_inputs / tokens).tolist()),
        activation_input_energy=tuple((activation_values + along_mean).tolist()),
        row_scale=0.0,
        activation_subspace={},
        weight_left={},
        weight_right={},
        weight_both={},
    )


def fold_view(static: LayerView, parts: Projections, folds: Sequence[int]) -> LayerView:
    """`static` with the shares of the signal energy from the given folds."""
    return replace(
        static,
        row_scale=_share(parts.row_scale, parts.whole, folds),
        activation_subspace={r: _share(part, parts.seen_left, folds) for r, part in parts.activation.items()},
        weight_left={r: _share(part, parts.seen_right, folds) for r, part in parts.weight_left.items()},
        weight_right={r: _share(part, parts.seen_left, folds) for r, part in parts.weight_right.items()},
        weight_both={r: _share(part, parts.whole, folds) for r, part in parts.weight_both.items()},
    )


def null_view(static: LayerView) -> LayerView:
    """`static` with the shares that white noise has: dimension of the subspace over m n."""
    m, n = static.out_features, static.in_features
    fitting = _fitting(static)
    return replace(
        static,
        row_scale=1 / n,
        activation_subspace={r: r / n for r in fitting},
        weight_left={r: r / m for r in fitting},
        weight_right={r: r / n for r in fitting},
        weight_both={r: r * r / (m * n) for r in fitting},
    )


def uniform_view(static: LayerView, share: float) -> LayerView:
    """`static` with every share equal: at 0 and 1 the ends of what a variant's share can be."""
    shares = dict.fromkeys(_fitting(static), share)
    return replace(
        static,
        row_scale=share,
        activation_subspace=shares,
        weight_left=shares,
        weight_right=shares,
        weight_both=shares,
    )


def _fitting(view: LayerView) -> list[int]:
    return [r for r in RANKS if r <= min(view.out_features, view.in_features)]


def _gram(stack: Tensor) -> np.ndarray:
    flat = stack.flatten(1)
    return (flat @ flat.T).cpu().numpy()


def _share(part: np.ndarray, whole: np.ndarray, folds: Sequence[int]) -> float:
    pick = np.ix_(list(folds), list(folds))
    top, bottom = part[pick], whole[pick]
    below = float(bottom.sum() - np.trace(bottom))
    return float(top.sum() - np.trace(top)) / below if below else 0.0
