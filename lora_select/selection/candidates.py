"""Every candidate: variant x targets x rank, with the numbers that follow from the model alone."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

from lora_select.errors import InputError
from lora_select.records import Constraints, LayerSpectra, Spectra
from lora_select.spectral.statistics import ADAPTER_RANKS
from lora_select.variants import CANDIDATES, VARIANTS, offered
from lora_select.variants.base import Context, Variant

ALL_LINEAR, MLP_ONLY = "all-linear", "mlp-only"
TARGETS = (ALL_LINEAR, MLP_ONLY)
MLP_KINDS = frozenset(
    {"gate_proj", "up_proj", "down_proj", "gate_up_proj", "c_fc", "fc1", "fc2", "fc_in", "fc_out", "w1", "w2", "w3"}
    | {"dense_h_to_4h", "dense_4h_to_h", "wi", "wi_0", "wi_1", "wo", "lin1", "lin2"}
)
"""Names that the linear layers of feed-forward blocks have in transformers."""


@final
@dataclass(frozen=True)
class Candidate:
    """A variant at a size on some layers. `key` names it in records and MLflow: `<variant>-<targets>-r<r>`.

    `others` are names of layers that get no adapter, `experts` the shapes (experts, m, n) of expert tensors that get one.
    """

    variant: Variant
    targets: str
    target_modules: tuple[str, ...]
    layers: tuple[LayerSpectra, ...]
    others: tuple[str, ...] = ()
    experts: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """`<variant>-<targets>-<size>`."""
        return f"{self.variant.name}-{self.targets}-{self.variant.size}"

    @property
    def spectra_key(self) -> str:
        """Key of the variant's numbers in a layer's record."""
        return f"{self.variant.name}@{self.variant.r}"

    @property
    def num_parameters(self) -> int:
        """Trainable parameters on all targeted layers and experts; each expert has factors of its own."""
        shapes = ((layer.out_features, layer.in_features) for layer in self.layers)
        layers = self.variant.shared_parameters + sum(self.variant.num_parameters(shape) for shape in shapes)
        return layers + sum(count * self.variant.num_parameters((m, n)) for count, m, n in self.experts.values())

    @property
    def capacity_bits(self) -> float:
        """2 bits a parameter: 2 r sum (m + n) for LoRA.

        References:
            Thinking Machines (2025), *LoRA Without Regret*: about 2 bits are stored a parameter.
        """
        return 2.0 * self.num_parameters


def enumerate_candidates(spectra: Spectra, r: int | None = None, named: str | None = None) -> tuple[Candidate, ...]:
    """All candidates, in the order of `CANDIDATES`, `TARGETS` and rising rank.

    Args:
        spectra: names and shapes of the layers.
        r: a rank the user named, offered beside the usual ones.
        named: a variant the user named, offered beside those that the spectral pass measures.

    Raises:
        InputError: no layer was measured.
    """
    if not spectra.layers:
        raise InputError(
            "the spectral record holds no layer, so there is nothing to adapt; look at its `skipped_layers`"
        )
    ranks = sorted(set(ADAPTER_RANKS) if r is None else {*ADAPTER_RANKS, r})
    groups = target_groups(spectra.layers)
    return tuple(
        Candidate(variant, targets, _suffixes(layers), layers, tuple(spectra.skipped_layers))
        for kind in (*CANDIDATES, *(kind for kind in VARIANTS if kind.name == named and kind not in CANDIDATES))
        for targets, layers in groups.items()
        for variant in offered(kind, ranks)
    )


def target_groups(layers: Sequence[LayerSpectra]) -> Mapping[str, tuple[LayerSpectra, ...]]:
    """Layers by target name, sorted by layer name; `mlp-only` only where feed-forward layers are recognised."""
    every = tuple(sorted(layers, key=lambda layer: layer.name))
    mlp = tuple(layer for layer in every if layer.kind in MLP_KINDS)
    return {ALL_LINEAR: every} | ({MLP_ONLY: mlp} if mlp and len(mlp) < len(every) else {})


def context_of(candidate: Candidate, constraints: Constraints) -> Context:
    """The constraints, with what the candidate's layers say."""
    layers = tuple((layer.name, layer.out_features, layer.in_features) for layer in candidate.layers)
    return Context.of(constraints, layers, min(len(layer.activation_values) for layer in candidate.layers))


def aggregate_share(candidate: Candidate, everything: Sequence[LayerSpectra]) -> tuple[float, float] | None:
    """Share of the whole model's signal energy in the candidate's tangent space, and its standard error.

    sum over targeted layers of w_l c_l over sum over all layers of w_l, w_l the signal energy where it is positive; equal
    to the parameters of the layer where no layer has any. Errors are added and not squared first: all layers see the same
    microbatches. None for a rank that was not measured.
    """
    key = candidate.spectra_key
    if any(key not in layer.tangent_shares for layer in candidate.layers):
        return None
    signal = {layer.name: max(0.0, layer.signal_energy) for layer in everything}
    if not any(signal.values()):
        signal = {layer.name: float(layer.out_features * layer.in_features) for layer in everything}
    total = math.fsum(signal.values())
    share = math.fsum(signal[layer.name] * layer.tangent_shares[key] for layer in candidate.layers) / total
    error = math.fsum(signal[layer.name] * layer.tangent_shares_se[key] for layer in candidate.layers) / total
    return share, error


def _suffixes(layers: Sequence[LayerSpectra]) -> tuple[str, ...]:
    return tuple(sorted({layer.kind for layer in layers}))
