"""The streamed pass: forward and backward over microbatches, sums per layer, one record a layer."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from lora_select.errors import InputError
from lora_select.records import LayerSpectra
from lora_select.spectral.capture import Capture, capturing
from lora_select.spectral.finish import Pass, activation_count, finish
from lora_select.spectral.layer import FOLDS, LayerPass
from lora_select.spectral.sketch import Sizes, TestMatrices
from lora_select.spectral.view import MeasuredVariant

LossFunction = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]]
"""(model, batch) -> summed loss of each row in nats, label tokens of each row."""

Progress = Callable[[int, int, str], None]


@final
@dataclass(frozen=True)
class Settings:
    """How the pass measures: the loss, the variants to compute shares for, sketch sizes, and the seed of test matrices."""

    loss_fn: LossFunction
    variants: tuple[MeasuredVariant, ...]
    sizes: Sizes
    seed: int


@final
@dataclass(frozen=True)
class Measured:
    """Records and tensors of all layers, and totals of the pass."""

    layers: tuple[LayerSpectra, ...]
    skipped: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    tokens: int
    label_tokens: int
    mean_loss: float
    seconds: float


@final
@dataclass
class Totals:
    """What is summed over microbatches besides the layers."""

    loss: float = 0.0
    label_tokens: int = 0
    tokens: int = 0
    repeated: set[str] = field(default_factory=set)
    """Layers called more than once in one forward pass."""


def stream(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    layers: Mapping[str, nn.Linear],
    settings: Settings,
    progress: Progress | None = None,
) -> Measured:
    """Run the pass; see :func:`lora_select.spectral.analyze.analyze`."""
    started = time.monotonic()
    report, total = progress or _silent, len(batches) + len(layers)
    tests = TestMatrices(settings.sizes, settings.seed, next(model.parameters()).device)
    sums = {name: LayerPass(module, tests, activation_count(settings.sizes)) for name, module in layers.items()}
    folds = fold_of_each(len(batches))
    totals = _accumulate(
        model, batches, sums, settings, lambda done: report(done, total, f"microbatch {done} of {len(batches)}")
    )
    skipped = _skipped(sums, totals.repeated, len(batches))
    counts = tuple(folds.count(fold) for fold in range(FOLDS))
    run = Pass(counts, settings.sizes, len(batches) / totals.label_tokens, settings.variants)
    records, tensors = [], {}
    for index, name in enumerate(sorted(set(sums) - set(skipped))):
        record, parts = finish(name, sums.pop(name), run)
        records.append(record)
        tensors |= parts
        report(len(batches) + index + 1, total, f"finished {name}")
    return Measured(
        layers=tuple(records),
        skipped=skipped,
        tensors=tensors,
        tokens=totals.tokens,
        label_tokens=totals.label_tokens,
        mean_loss=totals.loss / totals.label_tokens,
        seconds=time.monotonic() - started,
    )


def fold_of_each(microbatches: int) -> list[int]:
    """The fold of every microbatch: the first half alternates between folds 0 and 1, the second between 2 and 3.

    Example:
        >>> fold_of_each(6)
        [0, 1, 0, 3, 2, 3]
    """
    half = microbatches // 2
    return [index % 2 + (0 if index < half else FOLDS // 2) for index in range(microbatches)]


def _accumulate(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    sums: Mapping[str, LayerPass],
    settings: Settings,
    done: Callable[[int], None],
) -> Totals:
    """Forward and backward over all microbatches into `sums`; directions are fixed at half-time.

    Raises:
        InputError: no label in any microbatch, or a loss that is not finite.
    """
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in sums if name in modules}
    device, folds, totals, current = next(model.parameters()).device, fold_of_each(len(batches)), Totals(), 0
    with capturing(model, layers, lambda name, x, y, d: sums[name].add(folds[current], x, y, d)) as capture:
        for current, held in enumerate(batches):
            if current == len(batches) // 2:
                for layer in sums.values():
                    layer.fix_directions(settings.sizes.directions)
            batch = {name: tensor.to(device) for name, tensor in held.items()}
            capture.start(batch.get("attention_mask"))
            with torch.enable_grad():
                nll, labels = settings.loss_fn(model, batch)
            summed = _checked(nll.sum(), capture, current)
            if summed.requires_grad:
                torch.autograd.backward(summed)
            totals.loss += summed.item()
            totals.label_tokens += int(labels.sum())
            totals.tokens += int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())
            totals.repeated |= {name for name, calls in capture.calls.items() if calls > 1}
            done(current + 1)
    if totals.label_tokens == 0:
        raise InputError(
            f"none of the {totals.tokens:,} tokens in the {len(batches)} microbatches of the spectral pass is a label; "
            "the label mask leaves nothing to learn: check the dataset's roles and `dataset.max_length`"
        )
    return totals


def _silent(_done: int, _total: int, _message: str) -> None:
    return


def _checked(loss: Tensor, capture: Capture, index: int) -> Tensor:
    """The loss if it is finite.

    Raises:
        InputError: it is not; names the first layer whose input is not.
    """
    if bool(torch.isfinite(loss)):
        return loss
    layer = capture.first_non_finite()
    place = f"the input of layer {layer} holds NaN or infinity" if layer else "every layer's input is finite"
    raise InputError(
        f"the loss of microbatch {index + 1} is {loss.item()}: {place}; the weights overflow in this precision or are "
        "damaged: load the base model in float32 or check its files"
    )


def _skipped(sums: Mapping[str, LayerPass], repeated: set[str], microbatches: int) -> dict[str, str]:
    """Layers without a full measurement, each with the reason.

    Raises:
        InputError: no layer was reached at all.
    """
    skipped = {}
    for name, layer in sums.items():
        if name in repeated:
            skipped[name] = "called more than once in one forward pass: its microbatch gradients are sums over calls"
        elif layer.microbatches == 0:
            skipped[name] = "never reached by the microbatches"
        elif layer.microbatches < microbatches:
            skipped[name] = f"reached by {layer.microbatches} of {microbatches} microbatches only"
    if len(skipped) == len(sums):
        name, reason = next(iter(skipped.items()))
        raise InputError(f"none of the {len(sums)} linear layers could be measured; {name}: {reason}")
    return skipped
