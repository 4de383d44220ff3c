"""`analyze`: one streamed pass over training microbatches, the base frozen; writes `spectra.safetensors`.

Torch is imported inside, so that a run whose stages are all cached never pays for it.
"""

import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lora_select.errors import InputError
from lora_select.records import Spectra, file_ref

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lora_select.spectral.view import MeasuredVariant

MINIMUM_MICROBATCHES = 4
HEADS = ("lm_head", "embed_out", "score", "classifier")
"""Output layers, never adapted: their gradient spectra say nothing about the others."""


def analyze(
    model: "nn.Module",
    batches: "Sequence[dict[str, Tensor]]",
    *,
    loss_fn: "Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]]",
    variants: "Sequence[MeasuredVariant]",
    sketch_size: int,
    seed: int,
    folder: Path,
    dataset_digest: str,
    model_digest: str,
    layers: "Mapping[str, nn.Linear] | None" = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Spectra:
    """Measure every linear layer: gradient signal and noise, weight, activations, tangent shares of the variants.

    The first half of the microbatches chooses singular directions, the second half gives their held-out values; signal
    energies come from products across all folds. No tensor of a weight's shape is made.

    Args:
        model: a language model; base weights are frozen and dropout is off during the pass, and put back after.
        batches: at least 4 microbatches drawn as training draws them, `input_ids`, `attention_mask`, `labels` (rows,
            length), in random order: halves and folds are taken by position.
        loss_fn: (model, batch) -> summed loss of each row in nats, label tokens of each row.
        variants: what to compute `tangent_shares` and `displacements` for (`lora_select.variants.CATALOGUE`).
        sketch_size: columns of the range sketch, at least 4; memory and time grow with it, errors fall with its root.
        seed: of the test matrices.
        folder: existing; gets `spectra.safetensors`.
        dataset_digest: recorded.
        model_digest: recorded.
        layers: linear layers by name; all but the output layer by default.
        progress: called with (done, total, message).

    Returns:
        The record; layers in order of name.

    Raises:
        InputError: no linear layer, none or not every one in `layers` reached, too few microbatches, no labels, or non-finite activations.
    """
    from safetensors.torch import save_file

    from lora_select.spectral.layer import FOLDS
    from lora_select.spectral.sketch import Sizes
    from lora_select.spectral.stream import Settings, stream

    if len(batches) < MINIMUM_MICROBATCHES:
        raise InputError(
            f"the spectral pass needs at least {MINIMUM_MICROBATCHES} microbatches, got {len(batches)}; bring more rows "
            "or lower `analysis.microbatch_size`"
        )
    chosen = linear_layers(model) if layers is None else dict(layers)
    if not chosen:
        raise InputError(_nothing_matched(model))
    settings = Settings(loss_fn, tuple(variants), Sizes(sketch_size), seed)
    measured = stream(model, batches, chosen, settings, progress)
    if layers is not None and measured.skipped:
        raise InputError("\n".join(f"layer {name}: {reason}" for name, reason in measured.skipped.items()))
    file = folder / "spectra.safetensors"
    save_file(dict(measured.tensors), file)
    return Spectra(
        dataset_digest=dataset_digest,
        model_digest=model_digest,
        microbatches=len(batches),
        folds=FOLDS,
        sketch_size=sketch_size,
        seed=seed,
        tokens=measured.tokens,
        label_tokens=measured.label_tokens,
        mean_loss=measured.mean_loss,
        layers=measured.layers,
        skipped_layers=measured.skipped,
        tensors=file_ref(file, folder),
        seconds=measured.seconds,
    )


def linear_layers(model: "nn.Module") -> "dict[str, nn.Linear]":
    """Every `nn.Linear` of the model by name, but the output layer; a module under two names is counted once."""
    from torch import nn

    head = getattr(model, "get_output_embeddings", lambda: None)()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and name.rpartition(".")[2] not in HEADS
    }


def select_layers(model: "nn.Module", suffixes: Sequence[str]) -> "dict[str, nn.Linear]":
    """The linear layers whose name ends with one of `suffixes`.

    Raises:
        InputError: a suffix matches nothing; names the nearest ones.
    """
    every = linear_layers(model)
    kinds = sorted({name.rpartition(".")[2] for name in every})
    for suffix in suffixes:
        if not any(name == suffix or name.endswith(f".{suffix}") for name in every):
            near = difflib.get_close_matches(suffix, kinds, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"no linear layer is named {suffix!r}; {hint}layers here: {', '.join(kinds)}")
    return {n: m for n, m in every.items() if any(n == s or n.endswith(f".{s}") for s in suffixes)}


def _nothing_matched(model: "nn.Module") -> str:
    kinds = sorted({type(module).__name__ for module in model.modules() if not list(module.children())})
    return (
        f"{type(model).__name__} has no nn.Linear layer besides its output layer, so there is nothing to measure or adapt; "
        f"its layers are {', '.join(kinds)}"
    )
