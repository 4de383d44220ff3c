"""A spectral record of a tiny model, for the starts that are made from one."""

from pathlib import Path
from typing import Any

from benchmarks.capability.tiny import TARGETS, Bench


def record(bench: Bench, folder: Path) -> Path:
    """Measure the tiny model on eight microbatches of random rows."""
    import torch
    from transformers.pytorch_utils import Conv1D

    from lora_select.spectral.measuring_pass import analyze
    from lora_select.variants import CATALOGUE

    model = bench.load(plain=True)
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | Conv1D) and name.rpartition(".")[2] in TARGETS[bench.architecture]
    }
    generator = torch.Generator().manual_seed(9)
    batches = []
    for _ in range(8):
        ids = torch.randint(4, 250, (4, 12), generator=generator)
        labels = torch.randint(0, 3, (4,), generator=generator) if bench.architecture == "bert" else ids
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    folder.mkdir(parents=True, exist_ok=True)
    analyze(
        model,
        batches,
        loss_fn=_loss,
        variants=CATALOGUE,
        sketch_size=16,
        seed=0,
        folder=folder,
        dataset_digest="tiny",
        model_digest="tiny",
        layers=layers,
    )
    return folder / "spectra.safetensors"


def _loss(model: Any, batch: dict[str, Any]) -> tuple[Any, Any]:
    """Summed loss of each row, and its labels."""
    import torch

    output = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
    if output.logits.ndim == 2:
        losses = torch.nn.functional.cross_entropy(output.logits.float(), batch["labels"], reduction="none")
        return losses, torch.ones(len(losses), dtype=torch.long)
    shifted, labels = output.logits[:, :-1].float(), batch["labels"][:, 1:]
    losses = torch.nn.functional.cross_entropy(shifted.transpose(1, 2), labels, reduction="none")
    return losses.sum(1), torch.full((len(labels),), labels.shape[1])
