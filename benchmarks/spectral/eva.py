"""Input directions of PEFT's EVA and of the pass beside exact ones, on all linear layers of three blocks.

The inputs of these layers are recorded once: they are what EVA's hooks get, over and over until it converges, and what the exact
decompositions are of. Layers that share an input (q, k, v; gate, up) count once.
"""

import time
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.spectral.passes import SKETCH, Batches, microbatches
from benchmarks.spectral.peers import EVA_SECONDS, MICROBATCHES, RANK, agreement, of
from lora_select import models
from lora_select.data.labels.tokens import label_loss
from lora_select.spectral.linear_layers import linear_layers
from lora_select.spectral.sketch import Sizes
from lora_select.spectral.stream import Settings, stream
from lora_select.variants import CATALOGUE

BLOCKS = (4, 14, 24)
APART = ("q_proj", "o_proj", "gate_proj", "down_proj")
"""One layer for each input of a block."""
Inputs = dict[str, list[Tensor]]
"""By layer, one tensor (rows, length, n) a microbatch."""


def eva(path: str, rows: int, length: int) -> dict[str, Any]:
    """Part `eva`: principal angles between the 16 leading directions that each way finds."""
    model: Any = models.load_model(path)
    batches = microbatches(path, MICROBATCHES, rows, length)
    layers = {n: m for n, m in linear_layers(model).items() if any(f".layers.{block}." in n for block in BLOCKS)}
    settings = Settings(label_loss, CATALOGUE, Sizes(SKETCH), 0)
    measured = stream(model, batches, layers, settings, lambda _done, _total, _message: None)
    inputs = recorded(model, layers, batches)
    names = [name for name in layers if name.endswith(APART)]
    found: dict[str, dict[str, Tensor]] = {
        "pass": {name: of(dict(measured.tensors), "activation_vectors")[name][:, :RANK] for name in names},
        "exact": {name: exact(inputs[name], first=0) for name in names},
        "exact_without_sinks": {name: exact(inputs[name], first=1) for name in names},
        "exact_uncentred": {name: exact(inputs[name], first=0, centred=False) for name in names},
    }
    theirs, took = converged(model, layers, inputs, batches)
    if theirs:
        found["peft"] = {name: theirs[name].T for name in names}
    pairs = [(one, other) for index, one in enumerate(found) for other in list(found)[index + 1 :]]
    angles = {
        f"{one}, {other}": agreement({name: (found[one][name], found[other][name]) for name in names})
        for one, other in pairs
    }
    variance = {
        way: captured({name: (inputs[name], found[way][name], found["exact"][name]) for name in names}) for way in found
    }
    sizes = {"rows": rows, "length": length, "blocks": BLOCKS, "inputs": len(names)}
    return sizes | took | {"variance": variance, "angles": angles}


def recorded(model: Any, layers: dict[str, nn.Module], batches: Batches) -> Inputs:
    """What each layer is given."""
    inputs: Inputs = {name: [] for name in layers}
    hooks = [
        module.register_forward_pre_hook(lambda _module, args, name=name: inputs[name].append(args[0].detach()))
        for name, module in layers.items()
    ]
    with torch.no_grad():
        for batch in batches:
            model(batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False, logits_to_keep=1)
    for hook in hooks:
        hook.remove()
    return inputs


def exact(inputs: list[Tensor], first: int, centred: bool = True) -> Tensor:
    """Leading eigenvectors (n, 16) of the second moment in float64, of each row's tokens from `first` on."""
    x = torch.cat([part[:, first:].flatten(0, 1) for part in inputs]).double()
    x = x - x.mean(0) if centred else x
    return torch.linalg.eigh(x.T @ x)[1][:, -RANK:]


def captured(triples: dict[str, tuple[list[Tensor], Tensor, Tensor]]) -> dict[str, float]:
    """Variance of the inputs along directions (n, 16) over that along the exact ones: median and least over layers."""
    shares = []
    for inputs, directions, best in triples.values():
        x = torch.cat([part.flatten(0, 1) for part in inputs]).double()
        x = x - x.mean(0)
        along = (x @ torch.linalg.qr(directions.double())[0]).square().sum()
        shares.append(float(along / (x @ best).square().sum()))
    return {"median": median(shares), "least": min(shares)}


def converged(
    model: Any, layers: dict[str, nn.Module], inputs: Inputs, batches: Batches
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """PEFT's EVA at its own threshold, its hooks fed with what was recorded; directions (16, n), none if it was stopped."""
    from peft import EvaConfig, LoraConfig, get_eva_state_dict

    config = LoraConfig(
        r=RANK,
        target_modules=list(layers),
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, use_label_mask=False),  # pyright: ignore[reportArgumentType]
    )
    numbered = [batch | {"number": torch.tensor(number)} for number, batch in enumerate(batches)]
    began, seen = time.process_time(), []

    def forward(_model: Any, batch: dict[str, Tensor]) -> None:
        if time.process_time() - began > 4 * EVA_SECONDS:
            raise TimeoutError
        seen.append(None)
        for name, module in layers.items():
            module(inputs[name][int(batch["number"])])

    try:
        state = get_eva_state_dict(model, numbered, config, forward_fn=forward, show_progress_bar=False)
    except TimeoutError:
        return {}, {"batches": len(seen), "converged": False}
    return state, {"batches": len(seen), "converged": True}
