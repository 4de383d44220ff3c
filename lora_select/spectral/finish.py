"""From one layer's running sums to its record, with a standard error for each estimate."""

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from lora_select.records import LayerSpectra, finite
from lora_select.spectral import signal
from lora_select.spectral.layer import EXACT_NORM_EVERY, FOLDS, LayerPass
from lora_select.spectral.numerics import jackknife
from lora_select.spectral.projections import Projections, fold_view, null_view, project, static_view, uniform_view
from lora_select.spectral.sketch import FoldSketches, Sizes, inner_products
from lora_select.spectral.view import RANKS, LayerView, MeasuredVariant

CLEAR = 2.0
"""A share is a ratio to the signal energy: where that is below this many standard errors, the share of white noise is
given, with an error as wide as the range that any gradient could give."""


@final
@dataclass(frozen=True)
class Pass:
    """What holds for all layers: microbatches per fold, sketch sizes, the variants to measure, and `scale`.

    `scale` = K / label tokens turns gradients of the summed loss into microbatch gradients whose mean over the K
    microbatches is the gradient of the loss per label token.
    """

    counts: tuple[int, ...]
    sizes: Sizes
    scale: float
    variants: tuple[MeasuredVariant, ...]


def finish(name: str, layer: LayerPass, run: Pass) -> tuple[LayerSpectra, dict[str, Tensor]]:
    """The record of a layer, and the tensors that initialisations are built from."""
    sketches = layer.sketches()
    inner, each = inner_products(sketches, run.sizes.directions)
    energy = _energy(layer, run, inner, each)
    values, vectors = layer.activations.leading(activation_count(run.sizes))
    static = static_view(layer, values, vectors)
    heldout, heldout_se = signal.heldout(torch.stack(layer.heldout).double().cpu().numpy() * run.scale)
    clear = energy.value > CLEAR * energy.standard_error
    shares, errors = _shares(static, project(layer, inner, vectors) if clear else None, run.variants)
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
        signal_rank=signal.signal_rank(heldout.tolist(), heldout_se.tolist()),
        weight_energy=layer.weight.energy,
        weight_values=tuple(layer.weight.values.tolist()),
        weight_stable_rank=layer.weight.stable_rank,
        activation_energy=static.activation_energy,
        activation_values=tuple(values.tolist()),
        output_energy=static.output_energy,
        tangent_shares=shares,
        tangent_shares_se=errors,
        displacements={key(v): v.displacement(static) for v in _fitting(run.variants, static)},
    )
    return record, _tensors(name, sketches, vectors, run)


def key(variant: MeasuredVariant) -> str:
    """`<variant>@<r>`."""
    return f"{variant.name}@{variant.r}"


def activation_count(sizes: Sizes) -> int:
    """How many activation directions are kept: enough for the largest offered rank."""
    return max(RANKS[-1], sizes.columns)


def _energy(layer: LayerPass, run: Pass, inner: Tensor, each: Tensor) -> signal.Energy:
    """Signal energy; its error joins the sampling of microbatches and the sketch."""
    side, m, n = layer.input_side, layer.out_features, layer.in_features
    probes = side.pi.shape[1] or side.k
    cores = torch.stack(layer.cores).double().cpu().numpy() * math.sqrt(m / layer.psi.shape[1] * n / probes)
    sampling = signal.sampling_error(cores)
    sketch = signal.sketch_error(each.cpu().numpy(), run.counts)
    value = signal.signal_energy(inner.cpu().numpy(), run.counts)
    return signal.Energy(value * run.scale**2, math.hypot(sampling, sketch) * run.scale**2)


def _noise(layer: LayerPass, run: Pass, energy: float) -> float:
    sketched = torch.stack(layer.sketched_norms).tolist()
    exact = torch.stack(layer.exact_norms).tolist()
    return signal.noise_energy(signal.mean_norm(sketched, exact, EXACT_NORM_EVERY) * run.scale**2, energy)


def _shares(
    static: LayerView, parts: Projections | None, variants: tuple[MeasuredVariant, ...]
) -> tuple[dict[str, float], dict[str, float]]:
    """Tangent shares in [0, 1] and their errors: jackknife over folds, joined with the spread over random starts."""
    if parts is None:
        return _unknown(static, variants)
    everything = list(range(FOLDS))
    full = fold_view(static, parts, everything)
    left_out = [fold_view(static, parts, [f for f in everything if f != out]) for out in everything]
    shares, errors = {}, {}
    for variant in _fitting(variants, static):
        sampling = jackknife([variant.tangent_share(view) for view in left_out])
        shares[key(variant)] = min(1.0, max(0.0, variant.tangent_share(full)))
        errors[key(variant)] = min(1.0, math.hypot(sampling, variant.tangent_share_spread(full)))
    return shares, errors


def _unknown(static: LayerView, variants: tuple[MeasuredVariant, ...]) -> tuple[dict[str, float], dict[str, float]]:
    """The shares of white noise, with errors as wide as the gradient could make them; LoRA's needs no gradient."""
    null, nothing, everything = null_view(static), uniform_view(static, 0.0), uniform_view(static, 1.0)
    shares, errors = {}, {}
    for variant in _fitting(variants, static):
        shares[key(variant)] = variant.tangent_share(null)
        width = abs(variant.tangent_share(everything) - variant.tangent_share(nothing))
        errors[key(variant)] = min(1.0, math.hypot(width, variant.tangent_share_spread(null)))
    return shares, errors


def _fitting(variants: tuple[MeasuredVariant, ...], view: LayerView) -> list[MeasuredVariant]:
    return [v for v in variants if v.r in (0, *RANKS) and v.r <= min(view.out_features, view.in_features)]


def _tensors(name: str, sketches: FoldSketches, vectors: Tensor, run: Pass) -> dict[str, Tensor]:
    """Activation directions and the gradient's leading singular system, per label token, for initialisations."""
    left, values, right = sketches.reconstruct(run.sizes.directions)
    mean = values * (run.scale / sum(run.counts))
    tensors = {"activation_vectors": vectors, "gradient_left": left, "gradient_values": mean, "gradient_right": right}
    return {f"{name}.{part}": tensor.float().cpu().contiguous() for part, tensor in tensors.items()}
