"""Half of the linear layers, by count: those of the best price, of the lowest condition number (KappaTune), or at random.

One sign step of LoRA at a layer W (m, n) takes about s^2 r m ||G||^2 / (3 n) off the task's loss squared, G the mean gradient; on reference text it
moves the layer's outputs by s^2 r m E||x||^2 / (3 n) of E||W x||^2, the square of its displacement there. The price is the first over the second,

    price = ||G||^2 E||W x||^2 / E||x||^2

with ||G||^2 the measuring pass's signal energy on training rows and both means over all tokens of reference text. It does not change where a
layer's inputs or outputs are rescaled.
"""

import json
import random
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.retention.kinds import digest, kinds
from benchmarks.retention.settings import Setting, Subject
from benchmarks.retention.study import GIVE, MIXTURE, REFERENCE_TOKENS
from lora_select import models
from lora_select.data.labels.tokens import TokenRow, label_loss
from lora_select.data.microbatches import draw
from lora_select.records import write_text
from lora_select.retention import moments
from lora_select.retention.bench import until
from lora_select.spectral.linear_layers import linear_layers
from lora_select.spectral.measuring_pass import analyze

HALVES = ("price", "condition", "random")
MICROBATCHES, SIZE = 16, 4


def half(setting: Setting, subject: Subject, work: Path) -> list[str]:
    """The names of the layers that the setting adapts; what they were chosen by is kept beside its adapter."""
    model = models.load_model(subject.source.path)
    layers = linear_layers(model)
    if setting.targets == "random":
        values = dict(zip(layers, random.Random(setting.seed).sample(range(len(layers)), len(layers)), strict=True))
    elif setting.targets == "condition":
        values = _conditions(model, layers, work / f"conditions-{setting.model}.json")
    else:
        file = work / f"prices-{setting.model}-{setting.task}.json"
        if not file.is_file():
            write_text(file, json.dumps(_prices(model, layers, subject, work, setting.model)))
        values = json.loads(file.read_text(encoding="utf-8"))
    chosen = sorted(sorted(layers, key=lambda name: -values[name])[: len(layers) // 2])
    write_text(work / setting.name / "targets.json", json.dumps({"chosen": chosen, "values": values}))
    return chosen


def _conditions(model: Any, layers: Mapping[str, Any], file: Path) -> dict[str, float]:
    """Places by the weights' condition numbers, as PEFT computes them, negative: KappaTune adapts the lowest ones."""
    from peft.helpers import KappaTuneSelector

    if not file.is_file():
        ordered = [name for name in KappaTuneSelector(model, show_progress=False).get_best_targets() if name in layers]
        write_text(file, json.dumps(ordered))
    return {name: -place for place, name in enumerate(json.loads(file.read_text(encoding="utf-8")))}


def _prices(model: Any, layers: Mapping[str, Any], subject: Subject, work: Path, model_name: str) -> dict[str, float]:
    """With the second moments of reference text that the filter takes, kept in the work folder."""
    pad_id = models.pad_id(subject.tokenizer)
    found = kinds(subject.tokenizer, GIVE)

    def sums(kind: str) -> moments.Moments:
        rows = until(found[kind].give, REFERENCE_TOKENS // len(MIXTURE))
        file = work / f"moments-{model_name}-{digest(rows)}.safetensors"
        if not file.is_file():
            moments.save(moments.stream(model, layers, rows, pad_id), file)
        return moments.load(file)

    return prices(model, layers, map(sums, MIXTURE), subject.train, pad_id)


def prices(
    model: Any,
    layers: Mapping[str, Any],
    reference: Iterable[moments.Moments],
    rows: Sequence[TokenRow],
    pad_id: int,
) -> dict[str, float]:
    """Signal energy times E||W x||^2 / E||x||^2 of each layer, nats^2; at or below 0 where the signal is lost in noise."""
    import torch

    outputs, inputs = dict.fromkeys(layers, 0.0), dict.fromkeys(layers, 0.0)
    for seen in reference:
        with torch.no_grad():
            for name, module in layers.items():
                z, weight = seen.of(name).products.float(), module.weight
                outputs[name] += float(((weight @ z) * weight).sum())
                inputs[name] += float(z.diagonal().sum())
    with tempfile.TemporaryDirectory() as folder:
        made = analyze(
            model,
            draw(rows, microbatches=MICROBATCHES, size=SIZE, seed=0, pad_id=pad_id),
            loss_fn=label_loss,
            variants=(),
            sketch_size=32,
            seed=0,
            folder=Path(folder),
            dataset_digest="",
            model_digest="",
            structure=False,
        )
    return {layer.name: layer.signal_energy * outputs[layer.name] / inputs[layer.name] for layer in made.layers}
