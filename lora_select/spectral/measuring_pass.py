"""`analyze`: one streamed pass over training microbatches, the base frozen; writes `spectra.safetensors`.

Torch is imported inside, so that a run whose stages are all cached never pays for it.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_select.errors import InputError
from lora_select.records import Spectra, file_ref

if TYPE_CHECKING:
    from torch import Tensor, nn

    from lora_select.spectral.statistics import MeasuredVariant

MINIMUM_MICROBATCHES = 4
MINIMUM_COLUMNS = 4


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
    structure: bool = True,
    layers: "Mapping[str, nn.Module] | None" = None,
    group: Any = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> Spectra:
    """Measure every linear layer: gradient signal and noise, weight, activations, structure, tangent shares of the variants.

    The first half of the microbatches chooses singular directions, the second half gives their held-out values; signal
    energies come from products across all folds. No gradient of a weight's shape is made in the pass. Works under autocast,
    gradient checkpointing and `device_map`; a microbatch that does not fit into memory is run in halves.

    Args:
        model: a causal language model or a sequence classifier; base weights are frozen and dropout is off during the pass, and
            put back after.
        batches: at least 4 microbatches drawn as training draws them, `input_ids`, `attention_mask`, `labels` (rows,
            length), in random order: halves and folds are taken by position.
        loss_fn: (model, batch) -> summed loss of each row in nats, label tokens of each row.
        variants: what to compute `tangent_shares` and `displacements` for (`lora_select.variants.CATALOGUE`).
        sketch_size: columns of the range sketch, at least 4; memory and time grow with it, errors fall with its root. Layers that are
            narrower are measured exactly.
        seed: of the test matrices.
        folder: existing; gets `spectra.safetensors`.
        dataset_digest: recorded.
        model_digest: recorded.
        structure: also the structure scores, and the tangent shares of variants that read them.
        layers: linear layers by name; all but the output layer by default.
        group: a process group of torch.distributed whose ranks share the microbatches; every rank gets the result.
        progress: called with (done, total, message).

    Returns:
        The record; layers in order of name.

    Raises:
        InputError: no linear layer, none or not every one in `layers` reached, too few microbatches, a sketch too small, no labels,
            non-finite activations, or a single row that does not fit into memory.
    """
    from safetensors.torch import save_file

    from lora_select.spectral.accumulate import FOLDS
    from lora_select.spectral.linear_layers import fused_experts, left_out, linear_layers, nothing_matched
    from lora_select.spectral.sketch import Sizes
    from lora_select.spectral.stream import Settings, stream

    if len(batches) < MINIMUM_MICROBATCHES:
        raise InputError(
            f"the spectral pass needs at least {MINIMUM_MICROBATCHES} microbatches, got {len(batches)}; bring more rows "
            "or lower `analysis.microbatch_size`"
        )
    if sketch_size < MINIMUM_COLUMNS:
        raise InputError(f"`analysis.sketch_size` must be at least {MINIMUM_COLUMNS}, got {sketch_size}")
    chosen = linear_layers(model) if layers is None else dict(layers)
    if not chosen:
        raise InputError(nothing_matched(model))
    refused = left_out(model, chosen)
    settings = Settings(loss_fn, tuple(variants), Sizes(sketch_size), seed, group, structure=structure)
    measured = stream(model, batches, {n: m for n, m in chosen.items() if n not in refused}, settings, progress)
    if layers is not None and measured.skipped:
        raise InputError("\n".join(f"layer {name}: {reason}" for name, reason in measured.skipped.items()))
    experts = fused_experts(model)
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
        skipped_layers=refused | dict(measured.skipped),
        tensors=file_ref(file, folder),
        seconds=measured.seconds,
        finish_seconds=measured.finish_seconds,
        notes=measured.notes,
        fused_experts={name: math.prod(shape) for name, shape in experts.items()},
        expert_shapes=experts,
        model_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
