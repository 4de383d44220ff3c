"""Whether structure scores name a planted update: teachers are MiniLM with an update of known kind on the six linear layers of its last block.

PYTHONPATH=DATA python -m benchmarks.spectral.planted        # resumable; a kind that is there is not run again

The pass reads the divergence KL(teacher || base) on package descriptions. A kind is named by the score that exceeds the value of a gradient
that does not know W by the largest factor, where that is above twice it beyond two standard errors; where none does, the update is plain.
"""

import copy
import json
import math
import platform
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.last_layer import subject
from lora_select.data.microbatches import draw
from lora_select.records import LayerSpectra, Spectra, write_text
from lora_select.spectral.linear_layers import linear_layers
from lora_select.spectral.measuring_pass import analyze
from lora_select.spectral.structure import null_scores
from lora_select.variants import CATALOGUE

FILE = Path(__file__).parents[1] / "results" / "planted.json"
TASK, ROWS, MICROBATCHES, SIZE = "section-latest", 256, 32, 4
RANK, BLOCK, MOVES = 8, 32, 0.3
"""Of the planted updates: rank, columns of a rotated block, and rms(D x) / rms(W x) in every layer."""
FACTOR, ERRORS = 2.0, 2.0
PLAIN = "low rank, random"
SCORES = {
    "low rank, leading inputs": ("eva@16",),
    "block rotation": ("rotation@32",),
    "row and column scale": ("row_scale", "column_scale"),
    "sparse": ("sparse",),
    "hadamard": ("hadamard",),
}
"""The kinds that a score could name, and the scores."""
Plant = Callable[[Tensor, Tensor, torch.Generator], Tensor]
"""Weight (m, n), leading input directions (n, q), generator -> update of any size."""


def _normal(generator: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator)


def _low_rank(weight: Tensor, _: Tensor, g: torch.Generator) -> Tensor:
    m, n = weight.shape
    return _normal(g, m, RANK) @ _normal(g, RANK, n)


def _leading(weight: Tensor, inputs: Tensor, g: torch.Generator) -> Tensor:
    return _normal(g, len(weight), RANK) @ inputs[:, :RANK].T


def _rotation(weight: Tensor, _: Tensor, g: torch.Generator) -> Tensor:
    blocks = _normal(g, weight.shape[1] // BLOCK, BLOCK, BLOCK)
    return weight @ torch.block_diag(*(blocks - blocks.mT))


def _scales(weight: Tensor, _: Tensor, g: torch.Generator) -> Tensor:
    m, n = weight.shape
    return _normal(g, m, 1) * weight + weight * _normal(g, n)


def _sparse(weight: Tensor, _: Tensor, g: torch.Generator) -> Tensor:
    m, n = weight.shape
    chosen = torch.rand(m, n, generator=g) < RANK * (m + n) / (m * n)
    return chosen * _normal(g, m, n)


def _hadamard(weight: Tensor, _: Tensor, g: torch.Generator) -> Tensor:
    return weight * _low_rank(weight, _, g)


KINDS: dict[str, Plant] = {
    PLAIN: _low_rank,
    "low rank, leading inputs": _leading,
    "block rotation": _rotation,
    "row and column scale": _scales,
    "sparse": _sparse,
    "hadamard": _hadamard,
}


def moments(model: nn.Module, batches: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """E[x x^T] of every layer's input, (n, n)."""
    sums: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., None]:
        def seen(_module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> None:
            x = inputs[0].reshape(-1, inputs[0].shape[-1])
            sums[name] = sums.get(name, torch.zeros(())) + x.T @ x

        return seen

    handles = [module.register_forward_hook(hook(name)) for name, module in linear_layers(model).items()]
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    for handle in handles:
        handle.remove()
    return sums


def teacher(base: nn.Module, kind: str, seen: Mapping[str, Tensor]) -> nn.Module:
    """The base with the kind's update on every linear layer, each moving its outputs as far."""
    made, generator = copy.deepcopy(base), torch.Generator().manual_seed(1)
    for name, module in linear_layers(made).items():
        weight, moment = module.weight.data, seen[name]
        assert isinstance(weight, Tensor)
        inputs = torch.linalg.eigh(moment).eigenvectors.flip(1)
        update = KINDS[kind](weight, inputs, generator)
        far = ((update @ moment) * update).sum() / ((weight @ moment) * weight).sum()
        weight += MOVES * update / far.sqrt()
    return made


def ratios(layers: Sequence[LayerSpectra]) -> dict[str, tuple[float, float]]:
    """Each score over its value for a gradient that does not know W, weighted by signal energy over layers, with its standard error."""
    energy = {layer.name: max(0.0, layer.signal_energy) for layer in layers if layer.structure}
    total = math.fsum(energy.values()) or 1.0
    found = {}
    for name in ("eva@16", "rotation@32", "row_scale", "column_scale", "sparse", "hadamard"):
        value = error = 0.0
        for layer in layers:
            if not layer.structure:
                continue
            field, _, size = name.partition("@")
            null = null_scores(layer.out_features, layer.in_features).get(
                (field, int(size or 0)), 16 / layer.in_features
            )
            shares = layer.tangent_shares if name == "eva@16" else layer.structure
            errors = layer.tangent_shares_se if name == "eva@16" else layer.structure_se
            value += energy[layer.name] * shares[name] / null / total
            error += energy[layer.name] * errors[name] / null / total
        found[name] = (round(value, 3), round(error, 3))
    return found


def named(found: Mapping[str, Sequence[float]]) -> str:
    """The kind that the scores name."""
    clear = {}
    for kind, scores in SCORES.items():
        values = [found[score][0] for score in scores if found[score][0] - ERRORS * found[score][1] > FACTOR]
        if values:
            clear[kind] = max(values)
    return max(clear, key=lambda kind: clear[kind]) if clear else PLAIN


def divergence(target: nn.Module) -> Callable[[nn.Module, dict[str, Tensor]], tuple[Tensor, Tensor]]:
    """(model, batch) -> KL(target || model) of each row, nats, and ones."""

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ours = model(**inputs).logits[:, 0].log_softmax(-1)
        with torch.no_grad():
            theirs = target(**inputs).logits[:, 0].log_softmax(-1)
        return (theirs.exp() * (theirs - ours)).sum(-1), torch.ones(len(ours), dtype=torch.int64)

    return loss


def measured(base: Any, target: nn.Module, batches: Sequence[dict[str, Tensor]], folder: Path) -> Spectra:
    """The pass over the gradient of the divergence from a teacher."""
    return analyze(
        base,
        batches,
        loss_fn=divergence(target),
        variants=CATALOGUE,
        sketch_size=32,
        seed=0,
        folder=folder,
        dataset_digest="",
        model_digest="",
    )


def one(base: Any, pad_id: int, batches: Sequence[dict[str, Tensor]], kind: str) -> dict[str, Any]:
    """The scores of the divergence from a teacher."""
    target = teacher(base, kind, moments(base, batches))
    with tempfile.TemporaryDirectory() as folder:
        made = measured(base, target, batches, Path(folder))
    found = ratios(made.layers)
    return {"divergence": round(made.mean_loss, 4), "over_null": found, "named": named(found)}


def main() -> None:
    torch.set_num_threads(1)
    known: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8")) if FILE.is_file() else {"kinds": {}}
    missing = [kind for kind in KINDS if kind not in known["kinds"]]
    if missing:
        task = subject(TASK, ROWS, 32)
        batches = draw(task.train, microbatches=MICROBATCHES, size=SIZE, seed=0, pad_id=task.pad_id)
        for kind in missing:
            known["kinds"][kind] = one(task.model, task.pad_id, batches, kind)
            known["machine"] = f"{platform.machine()}, Python {platform.python_version()}"
            known["versions"] = {package: metadata.version(package) for package in ("torch", "transformers", "peft")}
            write_text(FILE, json.dumps(known, indent=1) + "\n")
            print(kind, known["kinds"][kind], flush=True)
    hits = sum(kind == found["named"] for kind, found in known["kinds"].items())
    print(f"{hits} of {len(known['kinds'])} named")


if __name__ == "__main__":
    main()
