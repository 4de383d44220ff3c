"""Parts of the gradient in the subspaces that variants start from, as cross-fold inner products."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, final

import numpy as np
from torch import Tensor

from lora_select.spectral.accumulate import LayerSums
from lora_select.spectral.sketch import FoldSketches
from lora_select.spectral.statistics import ADAPTER_RANKS, LayerStatistics
from lora_select.spectral.structure import HALVES, Key, Pair, Reconstructions, across_halves, gram, null_scores
from lora_select.spectral.weight import WeightSystem

OF_WEIGHT = ("weight", "weight_minor", "weight_columns")
"""Names of the shares of the systems of W."""


@final
@dataclass(frozen=True)
class Systems:
    """Systems of the weight, leading, trailing and of its first columns, and the leading activation directions (n, q)."""

    weight: WeightSystem
    minor: WeightSystem
    columns: WeightSystem
    activation_vectors: Tensor


def project(layer: LayerSums, whole: Tensor, systems: Systems, parts: Reconstructions) -> dict[Key, Pair]:
    """Project a layer's sketches on what W, the activations and the gradient itself single out.

    A part that is seen through one side of the sketch is compared with the whole through the same side, so that the sketch's error
    cancels where the gradient has few directions; parts on both sides are those of the gradient's leading directions.

    Args:
        layer: the finished sums.
        whole: <G_a, G_b> (F, F).
        systems: what to project on.
        parts: reconstructions of the folds.
    """
    sketches, everything, sizes = layer.sketches(), whole.cpu().numpy(), ranks(layer)
    seen_left, seen_right = gram(sketches.z), gram(sketches.y)
    found = _by_rank("activation_subspace", systems.activation_vectors, sketches.z, sizes, seen_left)
    for name, system in zip(OF_WEIGHT, (systems.weight, systems.minor, systems.columns), strict=True):
        found |= _by_rank(f"{name}_left", system.left, sketches.y, sizes, seen_right)
        found |= _by_rank(f"{name}_right", system.right, sketches.z, sizes, seen_left)
        both = {r: _both(parts, system.left[:, :r], system.right[:, :r]) for r in sizes}
        found |= {(f"{name}_both", r): (product, everything) for r, product in both.items()}
    return found | _own(sketches, parts, everything, sizes)


def ranks(layer: LayerSums) -> list[int]:
    """The measured adapter ranks that the layer can hold."""
    return [r for r in ADAPTER_RANKS if r <= min(layer.out_features, layer.in_features)]


def static_view(layer: LayerSums, systems: Systems, activation_values: Tensor, widest: int) -> LayerStatistics:
    """The numbers of a layer that do not depend on folds; shares are filled in by :func:`fold_view`."""
    vectors, mean = systems.activation_vectors, layer.activations.mean()
    values = activation_values + (mean @ vectors).square()
    return LayerStatistics(
        out_features=layer.out_features,
        in_features=layer.in_features,
        activation_energy=layer.activations.energy(),
        output_energy=layer.output_energy,
        weight_energy=systems.weight.energy,
        weight_values=tuple(systems.weight.values.tolist()),
        weight_input_energy=tuple(_along(systems.weight.right, layer, vectors, activation_values).tolist()),
        activation_input_energy=tuple(values.tolist()),
        row_scale=0.0,
        activation_subspace={},
        weight_left={},
        weight_right={},
        weight_both={},
        widest=widest,
    )


def fold_views(
    static: LayerStatistics, parts: Mapping[Key, Pair], subsets: Sequence[Sequence[int]]
) -> list[LayerStatistics]:
    """`static` with the shares of the signal energy from each subset of the folds: sums over pairs of different folds."""
    keys = list(parts)
    tops, bottoms = (np.stack([parts[key][side] for key in keys]) for side in (0, 1))
    views = []
    for folds in subsets:
        pairs = np.zeros(tops.shape[1:])
        pairs[np.ix_(folds, folds)] = 1.0
        np.fill_diagonal(pairs, 0.0)
        above, below = (tops * pairs).sum((1, 2)), (bottoms * pairs).sum((1, 2))
        shares = np.divide(above, below, out=np.zeros_like(above), where=below != 0)
        views.append(with_shares(static, dict(zip(keys, shares.tolist(), strict=True))))
    return views


def null_view(static: LayerStatistics) -> LayerStatistics:
    """`static` with the shares that white noise has: dimension of the subspace over m n."""
    m, n = static.out_features, static.in_features
    shares: dict[Key, float] = dict(null_scores(m, n))
    for r in _fitting(static):
        shares[("activation_subspace", r)] = r / n
        for name in (*OF_WEIGHT, "gradient"):
            shares |= {(f"{name}_left", r): r / m, (f"{name}_right", r): r / n, (f"{name}_both", r): r * r / (m * n)}
    return with_shares(static, shares)


def uniform_view(static: LayerStatistics, share: float) -> LayerStatistics:
    """`static` with every share equal: at 0 and 1 the ends of what a variant's share can be."""
    return with_shares(static, dict.fromkeys(_keys(static), share))


def with_shares(static: LayerStatistics, shares: Mapping[Key, float]) -> LayerStatistics:
    """`static` with fields by (name, size); size 0 for a single number."""
    changes: dict[str, Any] = {name: value for (name, size), value in shares.items() if size == 0}
    for (name, size), value in shares.items():
        if size:
            changes.setdefault(name, {})[size] = value
    return replace(static, **changes)


def _both(parts: Reconstructions, left: Tensor, right: Tensor) -> np.ndarray:
    """<U^T G_a V, U^T G_b V> for all folds."""
    return gram((left.T @ parts.bases) @ (parts.coefficients @ right))


def _own(sketches: FoldSketches, parts: Reconstructions, whole: np.ndarray, sizes: Sequence[int]) -> dict[Key, Pair]:
    """The gradient's own leading subspaces, chosen on one half of the microbatches and measured on the other."""
    wholes = {"left": gram(sketches.y), "right": gram(sketches.z), "both": whole}
    found = {(f"gradient_{side}", r): np.zeros_like(whole) for side in wholes for r in sizes}
    for chosen, told in zip(HALVES, HALVES[::-1], strict=True):
        u, _, v = sketches.of(list(chosen)).reconstruct(max(sizes, default=1))
        here, apart, place = sketches.of(list(told)), parts.of(list(told)), np.ix_(told, told)
        sides = _by_rank("left", u, here.y, sizes, whole) | _by_rank("right", v, here.z, sizes, whole)
        for r in sizes:
            found[("gradient_both", r)][place] = _both(apart, u[:, :r], v[:, :r])
            for side in ("left", "right"):
                found[(f"gradient_{side}", r)][place] = sides[(side, r)][0]
    masked = {side: across_halves(product) for side, product in wholes.items()}
    return {key: (across_halves(part), masked[key[0].removeprefix("gradient_")]) for key, part in found.items()}


def _by_rank(name: str, directions: Tensor, sketch: Tensor, sizes: Sequence[int], whole: np.ndarray) -> dict[Key, Pair]:
    """<V_r^T S_a, V_r^T S_b> over folds for the leading r directions, or as many as there are: energies of directions add up."""
    each = (directions[:, : max(sizes, default=0)].T @ sketch).double().transpose(0, 1)
    summed = (each @ each.mT).cumsum(0).cpu().numpy()
    return {(name, r): (summed[min(r, len(summed)) - 1], whole) for r in sizes}


def _along(directions: Tensor, layer: LayerSums, vectors: Tensor, values: Tensor) -> Tensor:
    """E(v . x)^2 for unit directions (n, q): leading eigenpairs of the centred second moment, an even rest, and the mean."""
    inside = (vectors.T @ directions).square()
    rest = max(0.0, layer.activations.variance() - float(values.sum())) / max(1, layer.in_features - vectors.shape[1])
    return values @ inside + rest * (1 - inside.sum(0)).clamp(min=0) + (layer.activations.mean() @ directions).square()


def _fitting(view: LayerStatistics) -> list[int]:
    return [r for r in ADAPTER_RANKS if r <= min(view.out_features, view.in_features)]


def _keys(static: LayerStatistics) -> list[Key]:
    sides = [f"{name}_{side}" for name in (*OF_WEIGHT, "gradient") for side in ("left", "right", "both")]
    sized = [(name, r) for name in ("activation_subspace", *sides) for r in _fitting(static)]
    return [*sized, *null_scores(static.out_features, static.in_features)]
