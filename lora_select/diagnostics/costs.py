"""What a candidate meets besides the gradient: the curvature at its start, and what quantising the base costs every layer."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.records import AdapterCosts, AdapterSpec, Constraints, Curvature, QuantisationError, Spectra

if TYPE_CHECKING:
    from torch import Tensor

    from lora_select.diagnostics.quantisation import Kind

CANDIDATE = "lora-all-linear-r16"
"""The rule's default."""
NOTHING_NAMED = Constraints()
Progress = Callable[[int, int, str], None]


def measure(
    spectra: Spectra,
    folder: Path,
    base: Path,
    batch: "dict[str, Tensor]",
    *,
    curvature: bool,
    quantize: "Kind | None",
    progress: Progress | None = None,
) -> AdapterCosts:
    """Both, as far as they are asked for.

    Args:
        spectra: of this base model; its tensors lie in `folder`.
        folder: of `spectra.safetensors`.
        base: folder of the base model.
        batch: one microbatch of the pass, for the curvature.
        curvature: of the default candidate.
        quantize: the base's storage whose error to measure; None for none.
        progress: called with (done, total, message).

    Raises:
        InputError: no labels in the microbatch, or spectra of an older version.
    """
    adapter = default_adapter(spectra)
    return AdapterCosts(
        candidate=CANDIDATE,
        curvature=_curvature(adapter, base, batch, progress) if curvature else None,
        quantisation={}
        if quantize is None
        else quantisation_errors(adapter, folder, base, spectra, quantize, progress),
    )


def default_adapter(spectra: Spectra) -> AdapterSpec:
    """The default candidate on the layers of the record, as training would build it."""
    from lora_select.selection.candidates import enumerate_candidates
    from lora_select.selection.findings import spec

    return next(spec(one, NOTHING_NAMED) for one in enumerate_candidates(spectra) if one.key == CANDIDATE)


def quantisation_errors(
    adapter: AdapterSpec, folder: Path, base: Path, spectra: Spectra, kind: "Kind", progress: Progress | None = None
) -> dict[str, QuantisationError]:
    """Of every layer that `adapter` targets, at the inputs that the spectral pass saw."""
    from lora_select.diagnostics.quantisation import quantisation_error
    from lora_select.initialization.activations import measured_layers
    from lora_select.initialization.weights import target_weights
    from lora_select.spectral.statistics import ADAPTER_RANKS

    parts = ("activation_vectors", "activation_values", "activation_mean")
    inputs = dict(measured_layers(adapter, folder / spectra.tensors.path, parts))
    variances = {layer.name: layer.activation_variance for layer in spectra.layers}
    found = {}
    for name, weight in target_weights(adapter, base):
        if name in inputs:
            directions, energies, mean = inputs[name]
            vectors, values, remainder = uncentred(directions, energies, mean, variances[name])
            found[name] = quantisation_error(weight, vectors, values, remainder, kind, ADAPTER_RANKS, spectra.seed)
            if progress is not None:
                progress(len(found), len(inputs), f"quantised {name}")
    return dict(sorted(found.items()))


def uncentred(vectors: "Tensor", values: "Tensor", mean: "Tensor", variance: float) -> "tuple[Tensor, Tensor, float]":
    """Eigenvectors (n, q + 1), eigenvalues (q + 1,) of the uncentred second moment, and its eigenvalue in every other direction.

    The centred one is C = V diag(values) V^T + c (I - V V^T), c the rest of the variance spread evenly; the uncentred one C + mean
    mean^T is found in the span of V and the mean, outside of which it is c I.

    Args:
        vectors: V, (n, q), orthonormal, q < n.
        values: (q,), at least 0.
        mean: (n,).
        variance: the trace of C.

    Example:
        >>> import torch
        >>> _, values, rest = uncentred(torch.eye(3)[:, :1], torch.tensor([2.0]), torch.tensor([0.0, 3.0, 0.0]), 4.0)
        >>> values.tolist(), rest   # 1 + 9 along the mean, 2 along V
        ([10.0, 2.0], 1.0)
    """
    import torch

    v, lam, mu = vectors.double(), values.double().clamp(min=0), mean.double()
    n, q = v.shape
    rest = max(0.0, variance - float(lam.sum())) / (n - q) if n > q else 0.0
    basis = torch.linalg.qr(torch.cat([v, mu[:, None]], 1))[0] if n > q else v
    turned, along = basis.T @ v, basis.T @ mu
    inner = turned * (lam - rest) @ turned.T + torch.outer(along, along)
    eigenvalues, rotation = torch.linalg.eigh(inner)
    order = (eigenvalues + rest).clamp(min=0).flip(0)
    return (basis @ rotation.flip(1)).float(), order.float(), rest


def _curvature(adapter: AdapterSpec, base: Path, batch: "dict[str, Tensor]", progress: Progress | None) -> Curvature:
    from lora_select import models
    from lora_select.diagnostics.adapter_curvature import adapter_curvature
    from lora_select.training.machine import detect_machine

    device = detect_machine().device
    model = models.load_model(str(base), device=device)
    return adapter_curvature(model, adapter, {k: v.to(device) for k, v in batch.items()}, progress=progress)


def sentences(costs: AdapterCosts) -> list[str]:
    """What was found, for a person."""
    lines = []
    if costs.curvature is not None:
        one = costs.curvature
        lines.append(
            f"curvature of {costs.candidate} at its start: {one.value:.3g} ± {one.error:.1g} nats per label and squared unit of its "
            f"{one.parameters:,} parameters, on one microbatch ({one.products} products by {one.route}); it decides nothing"
        )
    if costs.quantisation:
        errors = sorted((error.relative_error, name) for name, error in costs.quantisation.items())
        kind = next(iter(costs.quantisation.values())).kind
        lines.append(
            f"{kind} loses {100 * errors[len(errors) // 2][0]:.2g} % of a layer's output (median), at most {100 * errors[-1][0]:.2g} % "
            f"({errors[-1][1]}); 'in 16': share of that in its 16 leading directions, which a LoftQ start of r 16 takes back"
        )
    return lines
