"""One pass over real text, timed: what every part of the benchmark runs."""

import time
from collections.abc import Callable
from typing import Any

import torch

from lora_select import models
from lora_select.data.labels.tokens import TokenRow, collate, label_loss
from lora_select.data.reading import samples
from lora_select.spectral.capture import _start_graph, frozen
from lora_select.spectral.linear_layers import linear_layers
from lora_select.spectral.sketch import Sizes
from lora_select.spectral.stream import Measured, Settings, stream
from lora_select.variants import CATALOGUE

SKETCH = 32
"""Columns."""
Batches = list[dict[str, torch.Tensor]]


def microbatches(path: str, count: int, rows: int, length: int) -> Batches:
    """Real text, the last quarter of each row as labels."""
    ids = models.load_tokenizer(path)(samples.reference_text())["input_ids"]
    assert len(ids) >= count * rows * length, "the reference text is too short for so many tokens"
    mask = tuple(place >= 3 * length // 4 for place in range(length))
    pieces = [TokenRow(str(i), tuple(ids[i * length : (i + 1) * length]), mask) for i in range(count * rows)]
    return [collate(pieces[i * rows : (i + 1) * rows], 0) for i in range(count)]


def plain(model: Any, batches: Batches) -> float:
    """Processor seconds of forward + backward with a frozen base."""
    began = time.process_time()
    with frozen(model):
        hook = model.get_input_embeddings().register_forward_hook(_start_graph)
        for batch in batches:
            nll, _ = label_loss(model, batch)
            nll.sum().backward()
        hook.remove()
    return time.process_time() - began


def run(model: Any, batches: Batches, after: Callable[[int, float], None]) -> tuple[Measured, float]:
    """The pass, and processor seconds of finishing all layers; `after` gets index and seconds of each microbatch."""
    marks = [time.process_time()]

    def progress(done: int, _total: int, _message: str) -> None:
        if done <= len(batches):
            after(done - 1, time.process_time() - marks[0])
            marks[0] = time.process_time()

    settings = Settings(label_loss, CATALOGUE, Sizes(SKETCH), 0)
    measured = stream(model, batches, linear_layers(model), settings, progress)
    return measured, time.process_time() - marks[0]
