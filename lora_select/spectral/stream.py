"""The streamed pass: forward and backward over microbatches, sums per layer, one record a layer."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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
class Measured:
    """Records and tensors of all layers, and totals of the pass."""

    layers: tuple[LayerSpectra, ...]
    skipped: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    tokens: int
    label_tokens: int
    mean_loss: float
    seconds: float


def stream(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    layers: Mapping[str, nn.Linear],
    *,
    loss_fn: LossFunction,
    variants: Sequence[MeasuredVariant],
    sizes: Sizes,
    seed: int,
    progress: Progress | None = None,
) -> Measured:
    """Run the pass; see :func:`lora_select.spectral.analyze.analyze`."""
    started = time.monotonic()
    report = progress or (lambda _done, _total, _message: None)
    total = len(batches) + len(layers)
    device = next(model.parameters()).device
    tests = TestMatrices(sizes, seed, device)
    sums = {name: LayerPass(module, tests, activation_count(sizes)) for name, module in layers.items()}
    half, repeated = len(batches) // 2, set[str]()
    folds = [index % 2 if index < half else FOLDS // 2 + (index - half) % 2 for index in range(len(batches))]
    loss_sum, labels, tokens = 0.0, 0, 0
    current = 0
    with capturing(model, layers, lambda name, x, y, d: sums[name].add(folds[current], x, y, d)) as capture:
        for current, cpu_batch in enumerate(batches):
            if current == half:
                _fix(sums, sizes)
            batch = {name: tensor.to(device) for name, tensor in cpu_batch.items()}
            capture.start(batch.get("attention_mask"))
            with torch.enable_grad():
                nll, counts = loss_fn(model, batch)
            summed = _checked(nll.sum(), capture, current)
            if summed.requires_grad:
                torch.autograd.backward(summed)
            loss_sum, labels = loss_sum + summed.item(), labels + int(counts.sum())
            tokens += int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())
            repeated |= {name for name, calls in capture.calls.items() if calls > 1}
            report(current + 1, total, f"microbatch {current + 1} of {len(batches)}")
    if labels == 0:
        raise InputError(
            f"none of the {tokens:,} tokens in the {len(batches)} microbatches of the spectral pass is a label; "
            "the label mask leaves nothing to learn: check the dataset's roles and `dataset.max_length`"
        )
    skipped = _skipped(sums, repeated, len(batches))
    run = Pass(tuple(folds.count(f) for f in range(FOLDS)), sizes, len(batches) / labels, tuple(variants))
    records, tensors = [], {}
    for index, name in enumerate(sorted(set(sums) - set(skipped))):
        record, parts = finish(name, sums.pop(name), run)
        records.append(record)
        tensors |= parts
        report(len(batches) + index + 1, total, f"finished {name}")
    return Measured(tuple(records), skipped, tensors, tokens, labels, loss_sum / labels, time.monotonic() - started)


def _fix(sums: Mapping[str, LayerPass], sizes: Sizes) -> None:
    for layer in sums.values():
        layer.fix_directions(sizes.directions)


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
