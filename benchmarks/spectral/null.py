"""What the pass finds where there is less to find: real labels, labels shuffled among all places, and microbatches of random sign.

Shuffled labels keep one lesson, how often each token occurs; random signs keep none. Rows are the quickstart's tweets.
"""

import itertools
from typing import Any

import torch
from torch import Tensor

from benchmarks.spectral.passes import SKETCH, Batches
from lora_select import models
from lora_select.data.labels import tokenize
from lora_select.data.labels.tokens import IGNORED, collate, label_loss
from lora_select.data.reading import samples
from lora_select.spectral.linear_layers import linear_layers
from lora_select.spectral.sketch import Sizes
from lora_select.spectral.stream import Measured, Settings, stream

MICROBATCHES, ROWS = 16, 4


def null(path: str, _rows: int, _length: int) -> dict[str, Any]:
    """Signal ranks and layers with clear energy of the three."""
    model, batches = models.load_model(path), tweets(path)
    signs = torch.randperm(MICROBATCHES, generator=torch.Generator().manual_seed(0)) % 2 * 2.0 - 1
    signed = [{**batch, "sign": sign} for batch, sign in zip(batches, signs, strict=True)]
    found = {}
    for name, chosen in (("real", batches), ("shuffled", shuffled(batches)), ("signs", signed)):
        settings = Settings(signed_loss, (), Sizes(SKETCH), 0)
        found[name] = told(stream(model, chosen, linear_layers(model), settings))
        print(name, found[name], flush=True)
    return {"microbatches": MICROBATCHES, "rows": ROWS, **found}


def signed_loss(model: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The usual loss, times the microbatch's sign where it has one."""
    nll, labels = label_loss(model, {name: tensor for name, tensor in batch.items() if name != "sign"})
    return nll * batch.get("sign", torch.ones(())), labels


def tweets(path: str) -> Batches:
    """Rows as the quickstart has them."""
    tokenizer = models.load_tokenizer(path)
    made = (tokenize.tokenize(str(i), row, tokenizer, 256).row for i, row in enumerate(samples.tweet_entities()))
    kept = list(itertools.islice((row for row in made if row is not None), MICROBATCHES * ROWS))
    return [collate(kept[i : i + ROWS], models.pad_id(tokenizer)) for i in range(0, len(kept), ROWS)]


def shuffled(batches: Batches) -> Batches:
    """All labels permuted over all their places; inputs stay."""
    every = torch.cat([batch["labels"][batch["labels"] != IGNORED] for batch in batches])
    mixed = iter(every[torch.randperm(len(every), generator=torch.Generator().manual_seed(0))].tolist())
    result = []
    for batch in batches:
        labels = batch["labels"].clone()
        places = labels != IGNORED
        labels[places] = torch.tensor(list(itertools.islice(mixed, int(places.sum()))))
        result.append({**batch, "labels": labels})
    return result


def told(measured: Measured) -> dict[str, Any]:
    """Layers, those whose signal is above two standard errors, and signal ranks."""
    ranks = [layer.signal_rank for layer in measured.layers]
    return {
        "layers": len(ranks),
        "clear": sum(layer.signal_energy > 2 * layer.signal_energy_se for layer in measured.layers),
        "rank_above_0": sum(rank > 0 for rank in ranks),
        "rank_mean": sum(ranks) / len(ranks),
        "rank_max": max(ranks),
        "mean_loss": measured.mean_loss,
    }
