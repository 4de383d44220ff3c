"""Planted records: layers whose tangent shares, energies and displacements are what a test says."""

from lora_select.records import Constraints, DatasetProfile, FileRef, LayerSpectra, Quantiles, Spectra, SplitProfile
from lora_select.variants import CATALOGUE
from lora_select.variants.base import ClosedForm

FILE = FileRef("file", "0" * 64, 1)
KINDS = {
    "self_attn.q_proj": (64, 64),
    "self_attn.v_proj": (32, 64),
    "mlp.up_proj": (128, 64),
    "mlp.down_proj": (64, 128),
}


def has_displacement(variant: ClosedForm) -> bool:
    """Whether it has a closed form of its own, which the spectral pass records."""
    return type(variant).displacement is not ClosedForm.displacement


def layer(name: str, shape=(64, 64), *, signal=4.0, shares=None, error=0.01, displacements=None) -> LayerSpectra:
    """One layer; `shares` and `displacements` by variant name hold for every rank, LoRA's share is r / n."""
    shares, displacements = shares or {}, displacements or {}
    keys = [(f"{v.name}@{v.r}", v) for v in CATALOGUE]
    return LayerSpectra(
        name=name,
        kind=name.rpartition(".")[2],
        out_features=shape[0],
        in_features=shape[1],
        tokens=1000,
        signal_energy=signal,
        signal_energy_se=0.2,
        noise_energy=40.0,
        heldout_values=(2.0, 0.1),
        heldout_se=(0.1, 0.1),
        signal_rank=1,
        gradient_error=0.5,
        weight_energy=64.0,
        weight_values=(3.0, 1.0),
        weight_minor_values=(0.1, 0.2),
        weight_residual=1e-3,
        weight_stable_rank=7.1,
        activation_energy=64.0,
        activation_variance=60.0,
        activation_values=(1.0,) * 32,
        output_energy=64.0,
        structure={"hadamard": 1.0},
        structure_se={"hadamard": 0.1},
        tangent_shares={key: shares.get(v.name, v.r / shape[1]) for key, v in keys},
        tangent_shares_se=dict.fromkeys((key for key, _ in keys), error),
        displacements={key: displacements.get(v.name, 1.0) for key, v in keys if has_displacement(v)},
    )


def spectra(*, blocks: int = 2, **options) -> Spectra:
    """A model of `blocks` blocks with two attention and two feed-forward layers each."""
    layers = [
        layer(f"model.layers.{block}.{kind}", shape, **options)
        for block in range(blocks)
        for kind, shape in KINDS.items()
    ]
    return of(layers)


def of(layers) -> Spectra:
    """A record of these layers."""
    return Spectra(
        dataset_digest="d",
        model_digest="m",
        microbatches=32,
        folds=4,
        sketch_size=32,
        seed=0,
        tokens=1000,
        label_tokens=500,
        mean_loss=2.0,
        layers=tuple(layers),
        skipped_layers={},
        tensors=FILE,
        seconds=1.0,
        finish_seconds=0.1,
        notes=(),
    )


def profile(information_bits: float = 100.0) -> DatasetProfile:
    """A profile whose labels hold this many bits."""
    lengths = Quantiles(10, 20, 30, 40, 50, 22.0)
    split = SplitProfile(100, 2200, 1100, 1100, lengths, lengths, 0, 0, 0, 0)
    return DatasetProfile("d", "m", 256, split, split, 0, 2.0, 0.1, 64, 3.0, information_bits, (), FILE, FILE)


def inputs(**changes) -> Constraints:
    """No constraint, 60 planned steps."""
    plain = {
        "serve": None,
        "must_merge": False,
        "quantized_base": None,
        "allow_modified_base": True,
        "zero_stage": 0,
        "r": None,
        "variant": None,
        "targets": None,
        "learning_rate": None,
        "planned_steps": 60,
        "max_parameters": None,
        "claims": {},
    }
    return Constraints(**(plain | changes))
