"""The streamed pass: forward and backward over microbatches, sums per layer, one record a layer."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, final

import torch
import torch.distributed
from torch import Tensor, nn

from lora_select.errors import InputError
from lora_select.records import LayerSpectra
from lora_select.spectral.accumulate import FOLDS, LayerSums, MicrobatchSlice, spacing
from lora_select.spectral.capture import Capture, SharedInput, TokenMask, capturing, first_non_finite, select
from lora_select.spectral.estimates import PassInfo, finish
from lora_select.spectral.sketch import Sizes, TestMatrices
from lora_select.spectral.statistics import MeasuredVariant

LossFunction = Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]]
"""(model, batch) -> summed loss of each row in nats, label tokens of each row."""

Progress = Callable[[int, int, str], None]
TURN = 8
"""One microbatch in so many, the first ones, choose the activations' test matrices."""
MEMORY_WORDS = ("out of memory", "can't allocate memory", "not enough memory")


@final
@dataclass(frozen=True)
class Settings:
    """How the pass measures: the loss, the variants to compute shares for, sketch sizes, seed of test matrices, whether structure is scored.

    With a `group` of torch.distributed each rank runs every world-size-th microbatch of the same list; all of them get the result.
    """

    loss_fn: LossFunction
    variants: tuple[MeasuredVariant, ...]
    sizes: Sizes
    seed: int
    group: Any = None
    structure: bool = True


@final
@dataclass(frozen=True)
class Measured:
    """Records and tensors of all layers, and totals of the pass; `seconds` of the pass and of finishing the layers."""

    layers: tuple[LayerSpectra, ...]
    skipped: Mapping[str, str]
    tensors: Mapping[str, Tensor]
    tokens: int
    label_tokens: int
    mean_loss: float
    seconds: float
    finish_seconds: float
    notes: tuple[str, ...]


@final
@dataclass
class Totals:
    """What is summed over microbatches besides the layers."""

    loss: float = 0.0
    label_tokens: int = 0
    tokens: int = 0
    notes: list[str] = field(default_factory=list)


def stream(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    layers: Mapping[str, nn.Module],
    settings: Settings,
    progress: Progress | None = None,
) -> Measured:
    """Run the pass; see :func:`lora_select.spectral.measuring_pass.analyze`."""
    started = time.monotonic()
    report, total = progress or silent, len(batches) + len(layers)
    tests = TestMatrices(settings.sizes, settings.seed)
    sums = {name: LayerSums(module, tests, len(batches)) for name, module in layers.items()}
    totals = _accumulate(
        model, batches, sums, settings, lambda done: report(done, total, f"microbatch {done} of {len(batches)}")
    )
    skipped = _skipped(sums, len(batches))
    streamed = time.monotonic()
    run = PassInfo(
        _counts(next(iter(sums.values()))),
        settings.sizes,
        len(batches) / totals.label_tokens,
        settings.variants,
        max(layer.in_features for layer in sums.values()),
        settings.seed,
        settings.structure,
    )
    records, tensors = [], {}
    for index, (record, parts) in enumerate(_finished(sums, sorted(set(sums) - set(skipped)), run)):
        records.append(record)
        tensors |= parts
        report(len(batches) + index + 1, total, f"finished {record.name}")
    return Measured(
        layers=tuple(records),
        skipped=skipped,
        tensors=tensors,
        tokens=totals.tokens,
        label_tokens=totals.label_tokens,
        mean_loss=totals.loss / totals.label_tokens,
        seconds=time.monotonic() - started,
        finish_seconds=time.monotonic() - streamed,
        notes=tuple(totals.notes),
    )


def _finished(
    sums: dict[str, LayerSums], names: Sequence[str], run: PassInfo
) -> Iterator[tuple[LayerSpectra, dict[str, Tensor]]]:
    """Every layer finished, in order; on a CPU one layer a thread, since a layer's matrices are too small to share one well."""
    on_cpu = all(layer.right.device.type == "cpu" for layer in sums.values())
    workers = torch.get_num_threads() if on_cpu else 1
    with ThreadPoolExecutor(workers, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(lambda name: finish(name, sums.pop(name), run), names)


def _counts(layer: LayerSums) -> tuple[int, ...]:
    return tuple(layer.folds.count(fold) for fold in range(FOLDS))


@final
class _Rows:
    """The rows of the microbatch in flight, and what of them has gone through."""

    def __init__(self, sums: Mapping[str, LayerSums]):
        self._sums = sums
        self._outputs: dict[str, Tensor] = {}
        self.place = MicrobatchSlice(0, 0, 0, 0)

    def read(self, name: str, shared: SharedInput, gradient: Tensor) -> None:
        """An output gradient with its input."""
        self._sums[name].add(self.place, shared, gradient)

    def watch(self, name: str, y: Tensor, mask: TokenMask | None) -> None:
        """An output."""
        weights = mask.counted if mask is not None and y.shape[:-1] == mask.shape else None
        seen = self._sums[name].watched(select(y, mask), weights)
        self._outputs[name] = self._outputs[name] + seen if name in self._outputs else seen

    def forget(self) -> None:
        """The rows did not go through."""
        self._outputs = {}

    def keep(self) -> None:
        """The rows went through."""
        for name, seen in self._outputs.items():
            self._sums[name].outputs += seen
        self._outputs = {}


def _accumulate(
    model: nn.Module,
    batches: Sequence[dict[str, Tensor]],
    sums: Mapping[str, LayerSums],
    settings: Settings,
    done: Callable[[int], None],
) -> Totals:
    """Forward and backward over all microbatches into `sums`; test matrices turn after an eighth, directions are fixed at half-time.

    Raises:
        InputError: no label in any microbatch, a loss that is not finite, or a row that does not fit into memory.
    """
    modules = dict(model.named_modules())
    layers = {name: modules[name] for name in sums if name in modules}
    rank, world = _rank_and_world(settings.group)
    device, totals, rows = next(model.parameters()).device, Totals(), _Rows(sums)
    with capturing(model, layers, rows.read, rows.watch) as capture:
        for index in range(len(batches)):
            if index == max(1, len(batches) // TURN):
                _turn(sums, settings.group)
            if index == len(batches) // 2:
                _half_time(sums, settings.group, rank)
            if index % world != rank:
                continue
            for layer in sums.values():
                layer.begin()
            batch = {name: tensor.to(device) for name, tensor in batches[index].items()}
            rows.place = MicrobatchSlice(index, 0, 0, _rows_of(batch), spacing(_tokens_of(batch), len(batches)))
            _run(model, layers, batch, (0, _rows_of(batch)), settings, capture, rows, totals)
            done(index + 1)
    _meet(sums, settings.group)
    _meet_totals(totals, settings.group, device)
    if totals.label_tokens == 0:
        raise InputError(
            f"none of the {totals.tokens:,} tokens in the {len(batches)} microbatches of the spectral pass is a label; "
            "the label mask leaves nothing to learn: check the dataset's roles and `dataset.max_length`"
        )
    return totals


def _run(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    whole: dict[str, Tensor],
    part: tuple[int, int],
    settings: Settings,
    capture: Capture,
    rows: _Rows,
    totals: Totals,
) -> None:
    """Forward and backward of some rows of a microbatch; in halves where they do not fit into memory."""
    first, end = part
    count = _rows_of(whole)
    batch = {
        name: tensor[first:end] if tensor.ndim and len(tensor) == count else tensor for name, tensor in whole.items()
    }
    rows.place = replace(rows.place, first=first, end=end)
    capture.start(batch.get("attention_mask"))
    try:
        with torch.enable_grad():
            nll, labels = settings.loss_fn(model, batch)
        summed = _checked(nll.sum(), layers, lambda: settings.loss_fn(model, batch), rows.place.index)
        if summed.requires_grad:
            torch.autograd.backward(summed)
    except (RuntimeError, MemoryError) as error:
        if not _is_memory(error):
            raise
        fault = str(error)
    else:
        rows.keep()
        totals.loss += summed.item()
        totals.label_tokens += int(labels.sum())
        totals.tokens += _tokens_of(batch)
        return
    rows.forget()
    capture.start(None)
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    middle = _halved(first, end, batch, fault)
    note = f"microbatch {rows.place.index + 1} did not fit into memory with {end - first} rows; it was run in halves, with the same result"
    if note not in totals.notes:
        totals.notes.append(note)
    for piece in ((first, middle), (middle, end)):
        _run(model, layers, whole, piece, settings, capture, rows, totals)


def _halved(first: int, end: int, batch: dict[str, Tensor], fault: str) -> int:
    """The row to cut at.

    Raises:
        InputError: there is only one.
    """
    if end - first > 1:
        return (first + end) // 2
    raise InputError(
        f"one row of {batch['input_ids'].shape[-1]} tokens does not fit into memory in the spectral pass ({fault[:120]}); lower "
        "`dataset.max_length`, enable gradient checkpointing, or use a larger device"
    )


def _is_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error) for word in MEMORY_WORDS)


def _rows_of(batch: Mapping[str, Tensor]) -> int:
    return len(batch["input_ids"])


def _tokens_of(batch: Mapping[str, Tensor]) -> int:
    return int(batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum())


def _rank_and_world(group: Any) -> tuple[int, int]:
    if group is None:
        return 0, 1
    return torch.distributed.get_rank(group), torch.distributed.get_world_size(group)


def _turn(sums: Mapping[str, LayerSums], group: Any) -> None:
    """Turn the activations' test matrices, from what all ranks have seen; layers that share an input keep one matrix."""
    latest: dict[int, Tensor] = {}
    for layer in sums.values():
        moments = layer.activations
        if moments.test is None:
            continue
        _add_up(moments.sums(), group)
        moments.turn()
        known = latest.get(layer.in_features)
        if known is not None and torch.equal(known, moments.test):
            moments.test = known
        latest[layer.in_features] = moments.test


def _half_time(sums: Mapping[str, LayerSums], group: Any, rank: int) -> None:
    """Fix the directions from what all ranks have seen; from then on rank 0 alone holds that, so that it is counted once."""
    _meet(sums, group)
    for layer in sums.values():
        layer.fix_directions()
        if rank:
            for tensor in layer.sums():
                tensor.zero_()


def _meet(sums: Mapping[str, LayerSums], group: Any) -> None:
    """Add the sums of all ranks, on all ranks."""
    for layer in sums.values():
        _add_up(layer.sums(), group)


def _add_up(tensors: Sequence[Tensor], group: Any) -> None:
    if group is None:
        return
    for tensor in tensors:
        torch.distributed.all_reduce(tensor, group=group)


def _meet_totals(totals: Totals, group: Any, device: torch.device) -> None:
    if group is None:
        return
    numbers = torch.tensor([totals.loss, totals.label_tokens, totals.tokens], dtype=torch.float64, device=device)
    torch.distributed.all_reduce(numbers, group=group)
    totals.loss, totals.label_tokens, totals.tokens = float(numbers[0]), int(numbers[1]), int(numbers[2])


def silent(_done: int, _total: int, _message: str) -> None:
    """Tell nobody."""


def _checked(loss: Tensor, layers: Mapping[str, nn.Module], again: Callable[[], object], index: int) -> Tensor:
    """The loss if it is finite.

    Raises:
        InputError: it is not; names the first layer whose input is not.
    """
    if bool(torch.isfinite(loss)):
        return loss
    layer = first_non_finite(layers, again)
    place = f"the input of layer {layer} holds NaN or infinity" if layer else "every layer's input is finite"
    raise InputError(
        f"the loss of microbatch {index + 1} is {loss.item()}: {place}; the weights overflow in this precision or are "
        "damaged: load the base model in float32 or check its files"
    )


def _skipped(sums: Mapping[str, LayerSums], microbatches: int) -> dict[str, str]:
    """Layers without a full measurement, each with the reason.

    Raises:
        InputError: no layer was reached at all.
    """
    skipped = {}
    for name, layer in sums.items():
        if layer.microbatches == 0:
            skipped[name] = "never reached by the microbatches"
        elif layer.microbatches < microbatches:
            skipped[name] = f"reached by {layer.microbatches} of {microbatches} microbatches only"
    if len(skipped) == len(sums):
        name, reason = next(iter(skipped.items()))
        raise InputError(f"none of the {len(sums)} linear layers could be measured; {name}: {reason}")
    return skipped
