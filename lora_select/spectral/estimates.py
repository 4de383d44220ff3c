"""From one layer's running sums to its record, with a standard error for each estimate."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import Tensor

from lora_select.records import LayerSpectra, finite
from lora_select.spectral import signal
from lora_select.spectral.accumulate import FOLDS, LayerSums
from lora_select.spectral.linear_layers import plain_weight
from lora_select.spectral.numerics import error_of
from lora_select.spectral.projections import Systems, fold_views, null_view, project, ranks, static_view, uniform_view
from lora_select.spectral.sketch import FoldSketches, InnerProducts, Sizes, inner_products
from lora_select.spectral.statistics import ADAPTER_RANKS, CLEAR, LayerStatistics, MeasuredVariant
from lora_select.spectral.structure import null_scores, reconstructions, structure
from lora_select.spectral.weight import column_system, minor_system, narrow_gram, weight_system

SUBSETS = (list(range(FOLDS)), *([fold for fold in range(FOLDS) if fold != out] for out in range(FOLDS)))
"""All folds, and all but one, for the jackknife."""
"""A share is a ratio to the signal energy: where that is below this many standard errors, the share of white noise is
given, with an error as wide as the range that any gradient could give."""


@final
@dataclass(frozen=True)
class PassInfo:
    """What holds for all layers: microbatches per fold, sketch sizes, variants to measure, `scale`, inputs of the widest, seed, structure or not.

    `scale` = K / label tokens turns gradients of the summed loss into microbatch gradients whose mean over the K
    microbatches is the gradient of the loss per label token.
    """

    counts: tuple[int, ...]
    sizes: Sizes
    scale: float
    variants: tuple[MeasuredVariant, ...]
    widest: int
    seed: int
    structure: bool = True


def finish(name: str, layer: LayerSums, run: PassInfo) -> tuple[LayerSpectra, dict[str, Tensor]]:
    """The record of a layer, and the tensors that initialisations are built from."""
    sketches, weight = layer.sketches(), plain_weight(layer.module).float()
    inner = inner_products(sketches, run.sizes.directions)
    energy = _energy(layer, run, inner)
    values, vectors = layer.activations.leading(activation_count(run.sizes))
    squared = narrow_gram(weight)
    leading = weight_system(weight, activation_count(run.sizes), run.seed, squared)
    trailing = minor_system(weight, max(ranks(layer), default=1), run.seed, leading.values[:1], squared)
    systems = Systems(leading, trailing, column_system(weight, leading), vectors)
    static = static_view(layer, systems, values, run.widest)
    heldout, heldout_se = signal.heldout(layer.heldout[len(layer.folds) // 2 :].double().cpu().numpy() * run.scale)
    parts = None
    if energy.value > CLEAR * energy.standard_error:
        apart = reconstructions(sketches, run.sizes.directions)
        parts = project(layer, inner.value, systems, apart) | structure(weight, apart, scores=run.structure)
    views = None if parts is None else fold_views(static, parts, SUBSETS)
    shares, errors = _shares(static, views, run.variants)
    scores, scores_se = _scores(views if run.structure else None)
    record = LayerSpectra(
        name=name,
        kind=name.rpartition(".")[2],
        out_features=layer.out_features,
        in_features=layer.in_features,
        tokens=layer.tokens,
        signal_energy=finite(energy.value, f"signal energy of {name}"),
        signal_energy_se=finite(energy.standard_error, f"standard error of the signal energy of {name}"),
        noise_energy=_noise(layer, run, energy.value),
        heldout_values=tuple(heldout.tolist()),
        heldout_se=tuple(heldout_se.tolist()),
        signal_rank=signal.signal_rank(heldout.tolist(), heldout_se.tolist(), (sum(run.counts) + 1) // 2),
        gradient_error=_gradient_error(inner),
        weight_energy=leading.energy,
        weight_values=tuple(leading.values.tolist()),
        weight_minor_values=tuple(trailing.values.tolist()),
        weight_residual=max(leading.residual, trailing.residual),
        weight_stable_rank=leading.stable_rank,
        activation_energy=static.activation_energy,
        activation_variance=layer.activations.variance(),
        activation_values=tuple(values.tolist()),
        output_energy=static.output_energy,
        structure=scores,
        structure_se=scores_se,
        tangent_shares=shares,
        tangent_shares_se=errors,
        displacements={key(v): d for v in _fitting(run.variants, static) if (d := v.displacement(static)) > 0},
    )
    tensors = _tensors(sketches, systems, values, run) | {"activation_mean": layer.activations.mean()}
    return record, {f"{name}.{part}": tensor.float().cpu().contiguous() for part, tensor in tensors.items()}


def key(variant: MeasuredVariant) -> str:
    """`<variant>@<r>`."""
    return f"{variant.name}@{variant.r}"


def activation_count(sizes: Sizes) -> int:
    """How many activation and weight directions are kept: enough for the largest offered rank."""
    return max(ADAPTER_RANKS[-1], sizes.columns)


def _energy(layer: LayerSums, run: PassInfo, inner: InnerProducts) -> signal.Energy:
    """Signal energy; its error joins the sampling of microbatches and the sketch."""
    sampling = signal.sampling_error(layer.cores.double().cpu().numpy())
    sketch = signal.sketch_error(inner.left_out.cpu().numpy(), run.counts)
    value = signal.signal_energy(inner.value.cpu().numpy(), run.counts)
    return signal.Energy(value * run.scale**2, math.hypot(sampling, sketch) * run.scale**2)


def _noise(layer: LayerSums, run: PassInfo, energy: float) -> float:
    exact, sketched = layer.sample_norms.tolist()
    mean = signal.mean_norm(layer.sketched_norms.tolist(), exact, sketched)
    return signal.noise_energy(mean * run.scale**2, energy)


def _gradient_error(inner: InnerProducts) -> float:
    """A posteriori ||reconstruction - G||_F / ||G||_F of the mean gradient, signal and sampling noise alike."""
    whole = float(inner.value.sum())
    return min(1.0, max(0.0, inner.inflation * float(inner.missed.sum()) / whole) ** 0.5) if whole > 0 else 1.0


def _shares(
    static: LayerStatistics, views: Sequence[LayerStatistics] | None, variants: tuple[MeasuredVariant, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Tangent shares in [0, 1] and their errors: jackknife over folds, joined with the spread over random starts."""
    if views is None:
        return _unknown(static, variants)
    full, *left_out = views
    shares, errors = {}, {}
    for variant in _fitting(variants, static):
        sampling = error_of([variant.tangent_share(view) for view in left_out])
        shares[key(variant)] = min(1.0, max(0.0, variant.tangent_share(full)))
        errors[key(variant)] = min(1.0, math.hypot(sampling, variant.tangent_share_spread(full)))
    return shares, errors


def _scores(views: Sequence[LayerStatistics] | None) -> tuple[dict[str, float], dict[str, float]]:
    """Structure scores by field and size, and their errors; empty where the signal is not clear or none are wanted."""
    if views is None:
        return {}, {}
    full, *left_out = views
    scores, errors = {}, {}
    for field, size in null_scores(full.out_features, full.in_features):
        name = f"{field}@{size}" if size else field
        scores[name] = _number(full, field, size)
        errors[name] = error_of([_number(view, field, size) for view in left_out])
    return scores, errors


def _number(view: LayerStatistics, field: str, size: int) -> float:
    value = getattr(view, field)
    return float(value[size] if size else value)


def _unknown(
    static: LayerStatistics, variants: tuple[MeasuredVariant, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """The shares of white noise, with errors as wide as the gradient could make them; LoRA's needs no gradient."""
    null, nothing, everything = null_view(static), uniform_view(static, 0.0), uniform_view(static, 1.0)
    shares, errors = {}, {}
    for variant in _fitting(variants, static):
        shares[key(variant)] = variant.tangent_share(null)
        width = abs(variant.tangent_share(everything) - variant.tangent_share(nothing))
        errors[key(variant)] = min(1.0, math.hypot(width, variant.tangent_share_spread(null)))
    return shares, errors


def _fitting(variants: tuple[MeasuredVariant, ...], view: LayerStatistics) -> list[MeasuredVariant]:
    return [v for v in variants if v.r in (0, *ADAPTER_RANKS) and v.r <= min(view.out_features, view.in_features)]


def _tensors(sketches: FoldSketches, systems: Systems, values: Tensor, run: PassInfo) -> dict[str, Tensor]:
    """Singular systems for initialisations; the gradient's is of the mean per label token, with as many directions as columns."""
    left, singular, right = sketches.reconstruct(run.sizes.columns)
    tensors = {
        "activation_vectors": systems.activation_vectors,
        "activation_values": values,
        "gradient_left": left,
        "gradient_values": singular * (run.scale / sum(run.counts)),
        "gradient_right": right,
    }
    for part, system in (("weight", systems.weight), ("weight_minor", systems.minor)):
        tensors |= {f"{part}_left": system.left, f"{part}_values": system.values, f"{part}_right": system.right}
    return tensors
