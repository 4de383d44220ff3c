"""One layer fed microbatch by microbatch, as the pass feeds it."""

import torch
from torch import nn

from lora_select.spectral.accumulate import FOLDS, LayerSums, MicrobatchSlice, fold_of_each
from lora_select.spectral.capture import SharedInput
from lora_select.spectral.estimates import PassInfo, finish
from lora_select.spectral.sketch import Sizes, TestMatrices
from lora_select.variants import CATALOGUE


def run_layer(layer: nn.Module, microbatches, columns: int, seed: int = 0):
    """The record and tensors of a layer after a pass over (x, d) pairs: inputs (tokens, n), output gradients (tokens, m)."""
    pairs = list(microbatches)
    sizes = Sizes(columns)
    sums = LayerSums(layer, TestMatrices(sizes, seed), len(pairs))
    for index, (x, d) in enumerate(pairs):
        if index == 2:
            sums.activations.turn()
        if index == len(pairs) // 2:
            sums.fix_directions()
        sums.begin()
        with torch.no_grad():
            sums.outputs += sums.watched(layer(x), None)
        sums.add(MicrobatchSlice(index, 0, 1, 1), SharedInput(x, None), d)
    folds = fold_of_each(len(pairs))
    return finish(
        "layer",
        sums,
        PassInfo(tuple(folds.count(f) for f in range(FOLDS)), sizes, 1.0, CATALOGUE, layer.in_features, seed),
    )
